//! The table of policies in the kernel.
//!
//! Read [`Programmed::make`]: reading what the table holds, and making the difference to what it should hold in one
//! transaction, is how an agent starts, how a foreign hand is undone, and how a failure is got over. In between,
//! [`Programmed::take`] carries out the steps of a change without reading anything.

use kernel::nft::{Nft, Transaction};
use netstate::nft::{Chain, Family, Limit, Log, Rule, Statement, Step, Table, TableKey, diff};
use policy::TABLE;

/// A conversation with the kernel about the table.
#[derive(Debug)]
pub(super) struct Programmed {
    nft: Nft,
    table: TableKey,
}

impl Programmed {
    /// Opens it in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, kernel::Error> {
        let mut nft = Nft::open()?;
        // The socket has a port from its first question on.
        nft.generation()?;
        Ok(Self { nft, table: TableKey::new(Family::Inet, TABLE) })
    }

    /// By what notifications name changes made here.
    pub(super) fn port(&self) -> Result<u32, kernel::Error> {
        self.nft.port()
    }

    /// Carries out steps from the table as it is known, all of them or none.
    pub(super) fn take(&mut self, steps: &[Step]) -> Result<(), kernel::Error> {
        let mut transaction = Transaction::new();
        for step in steps {
            transaction.add_step(step);
        }
        self.nft.commit(transaction)
    }

    /// Makes the table hold what it should, whatever it holds; says in how many steps.
    pub(super) fn make(&mut self, want: &Table) -> Result<usize, kernel::Error> {
        let have = self.nft.table(&self.table, Some(want))?;
        let steps = diff(have.as_ref(), Some(want));
        self.take(&steps)?;
        Ok(steps.len())
    }

    /// Tries whether the kernel takes rules that log: in a table that is gone with the transaction that makes it.
    pub(super) fn can_log(&mut self) -> Result<(), kernel::Error> {
        let table = TableKey::new(Family::Inet, "fairlead_log_probe");
        let chain = Chain::regular("told");
        let limit = Limit { per_second: 1, burst: 1 };
        let log = Log { group: 0, prefix: "probe".into(), bytes: 1 };
        let mut transaction = Transaction::new();
        transaction.add_table(&table).add_chain(&table, &chain);
        transaction.add_rule(&table, &chain.name, &Rule::new([Statement::Limit(limit), Statement::Log(log)]));
        transaction.delete_table(&table);
        self.nft.commit(transaction)
    }

    /// Removes the table; true if it was there.
    pub(super) fn remove(&mut self) -> Result<bool, kernel::Error> {
        let mut transaction = Transaction::new();
        transaction.delete_table(&self.table);
        match self.nft.commit(transaction) {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
