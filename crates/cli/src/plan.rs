//! `fairlead plan`: what the agent would change on its node now.

use std::process::ExitCode;

use ::agent::PlanReport;
use anyhow::Result;
use clap::Args;

use crate::node::NodeOption;
use crate::output::{Format, OutputOption, print};
use crate::table::Table;

/// Show what the agent would change on its node now, without changing it
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fairlead plan\n  fairlead plan --lab default --node node1")]
pub(crate) struct Arguments {
    #[command(flatten)]
    node: NodeOption,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let plan = ::agent::ask_plan(&arguments.node.state_directory()?)?;
    match arguments.output.output {
        Format::Table | Format::Wide => print(&text(&plan))?,
        form => form.print(&plan, |_, _| Vec::<Table>::new())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(plan: &PlanReport) -> String {
    if plan.steps.is_empty() && plan.conflicts.is_empty() {
        return "nothing to change\n".to_owned();
    }
    format!("{}\n", plan.text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_plan_says_so() {
        assert_eq!(text(&PlanReport::default()), "nothing to change\n");
    }
}
