//! The corpus' own program, asked for the verdicts with the addresses that a lab gave.
//!
//! Read [`Oracle::fill`]. One interpreter answers for a whole game: to start one costs more than to ask it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The program by its command line, again and again: a line of arguments in, a line of what it prints out.
const AGAIN: &str = "\
import contextlib, io, json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import oracle
for line in sys.stdin:
    sys.argv = ['oracle.py'] + json.loads(line)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        oracle.main()
    print(json.dumps(json.loads(said.getvalue())), flush=True)
";

/// Which addresses a case is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filling {
    V4,
    V6,
    /// Those of both, told apart.
    Named,
}

/// The program while it runs.
pub(crate) struct Oracle {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    directory: TempDir,
}

impl Oracle {
    /// That of the corpus in this folder.
    pub(crate) fn of(folder: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", AGAIN]).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 starts");
        let questions = child.stdin.take().expect("standard input is a pipe");
        let answers = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        Self { child, questions, answers, directory: tempfile::tempdir().unwrap() }
    }

    /// The case with these addresses, and the verdicts that follow.
    pub(crate) fn fill(&mut self, case: &Value, addresses: &Value, filling: Filling) -> Value {
        let [case, addresses] = [("case.json", case), ("ips.json", addresses)].map(|(name, value)| {
            let path = self.directory.path().join(name);
            std::fs::write(&path, value.to_string()).unwrap();
            path
        });
        let mut words = vec![json!("fill"), json!(case), json!("--ips"), json!(addresses)];
        match filling {
            Filling::V4 => words.extend([json!("--family"), json!("v4")]),
            Filling::V6 => words.extend([json!("--family"), json!("v6")]),
            Filling::Named => {}
        }
        words.extend([json!("--podcidr"), json!("10.244.0.0/16")]);
        writeln!(self.questions, "{}", Value::from(words)).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the corpus' program has ended; it says above why");
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
