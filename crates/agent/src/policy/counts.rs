//! What policies have counted, for whoever asks.
//!
//! Read [`Counts::read`]. The counters are read from the kernel by who asks, and laid at the policies' doors by the keeper,
//! who alone knows them; and not more than once a second, however many ask.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kernel::nft::Nft;
use netstate::nft::{Family, TableKey};
use policy::{Count, TABLE};

use super::keeper::News;

/// What was read is as good as new for so long.
const FRESH: Duration = Duration::from_secs(1);

/// So long the keeper may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads what policies have counted.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    news: Sender<News>,
    last: Arc<Mutex<Last>>,
}

#[derive(Debug, Default)]
struct Last {
    nft: Option<Nft>,
    at: Option<Instant>,
    counts: Vec<Count>,
}

impl Counts {
    pub(super) fn new(news: Sender<News>) -> Self {
        Self { news, last: Arc::default() }
    }

    /// Where there is no keeper.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Self {
        Self::new(mpsc::channel().0)
    }

    /// Totals since the agent started, in order. Where they cannot be read now, those of before.
    pub(crate) fn read(&self) -> Vec<Count> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.at.is_none_or(|at| at.elapsed() >= FRESH) {
            match self.ask(&mut last.nft) {
                Ok(Some(counts)) => last.counts = counts,
                Ok(None) => tracing::debug!("the keeper of policies is too busy to say what was counted"),
                Err(error) => {
                    last.nft = None;
                    tracing::warn!(%error, "the metrics say of policies what was counted before");
                }
            }
            last.at = Some(Instant::now());
        }
        last.counts.clone()
    }

    fn ask(&self, nft: &mut Option<Nft>) -> Result<Option<Vec<Count>>, kernel::Error> {
        let nft = match nft {
            Some(nft) => nft,
            None => nft.insert(Nft::open()?),
        };
        let counted = nft.counters(&TableKey::new(Family::Inet, TABLE))?;
        let (answer, answered) = mpsc::channel();
        let asked = self.news.send(News::Counted(counted, answer));
        Ok(asked.ok().and_then(|()| answered.recv_timeout(PATIENCE).ok()))
    }
}
