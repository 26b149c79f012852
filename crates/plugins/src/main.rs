//! The binary fairlead-cni: acts as the plugin it is called by.

use std::process::ExitCode;

fn main() -> ExitCode {
    plugins::run(std::env::args_os()).into()
}
