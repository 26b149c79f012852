//! Plain tables: upper-case headings, columns as wide as needed, no lines. They paste well and grep well.

/// Rows under headings, with an optional title and remark.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    title: Option<String>,
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    remark: Option<String>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>) -> Self {
        Self { headings: headings.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// A line above it.
    pub(crate) fn titled(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// A line below it.
    pub(crate) fn remarked(mut self, remark: impl Into<String>) -> Self {
        self.remark = Some(remark.into());
        self
    }

    /// One more row.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The text, ending with a line break; headings in bold for a terminal.
    pub(crate) fn render(&self, bold: bool) -> String {
        let widths = self.widths();
        let mut text = self.title.as_ref().map(|title| format!("{title}\n")).unwrap_or_default();
        let headings = line(self.headings.iter().map(String::as_str), &widths);
        text.push_str(&if bold { format!("\u{1b}[1m{headings}\u{1b}[0m") } else { headings });
        text.push('\n');
        for row in &self.rows {
            text.push_str(&line(row.iter().map(|cell| shown(cell)), &widths));
            text.push('\n');
        }
        if let Some(remark) = &self.remark {
            text.push_str(remark);
            text.push('\n');
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.headings.iter().map(|heading| heading.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(shown(cell).chars().count());
            }
        }
        widths
    }
}

fn shown(cell: &str) -> &str {
    if cell.is_empty() { "-" } else { cell }
}

fn line<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let padded: Vec<String> = cells.zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
    padded.join("  ").trim_end().to_owned()
}

/// Several values in one cell.
pub(crate) fn joined<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_an_empty_cell_is_a_dash() {
        let mut table = Table::new(["NAME", "NODE"]);
        table.row(["leader", "node1"]);
        table.row(["a", ""]);
        assert_eq!(table.render(false), "NAME    NODE\nleader  node1\na       -\n");
    }
}
