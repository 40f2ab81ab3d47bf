//! [`table`]: rows as a table that fits the terminal.
//!
//! ```text
//!   widths:  as wide as its longest cell, each column; where that is too much, the widest give way to a common width
//!   cells:   numbers to the right, the rest to the left; what is cut off ends in …
//! ```

use serde_json::{Map, Value};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::style::{Role, Style};

/// Between two columns.
const GAP: usize = 2;

/// The least that a column may give way to.
const LEAST: usize = 6;

/// A table of `rows` that is at most `width` columns wide; `None` if they are no objects.
pub fn table(rows: &[Value], width: usize, style: Style) -> Option<String> {
    let rows: Vec<&Map<String, Value>> = rows.iter().map(Value::as_object).collect::<Option<_>>()?;
    let columns = columns(&rows);
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| columns.iter().map(|column| row.get(*column).map_or_else(String::new, cell)).collect())
        .collect();
    let natural = columns.iter().enumerate().map(|(index, column)| {
        let longest = cells.iter().map(|row| row[index].width()).max().unwrap_or(0);
        longest.max(column.width())
    });
    let widths = fit(natural.collect(), width.saturating_sub(GAP * columns.len().saturating_sub(1)));
    let is_number: Vec<bool> =
        columns.iter().map(|column| rows.iter().any(|row| row.get(*column).is_some_and(Value::is_number))).collect();
    let line = |cells: &mut dyn Iterator<Item = (usize, &str)>, paint: &dyn Fn(&str) -> String| {
        let mut line = String::new();
        for (index, text) in cells {
            let text = cut(text, widths[index]);
            let blanks = " ".repeat(widths[index] - text.width());
            if index > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            let painted = paint(&text);
            line.extend(if is_number[index] { [blanks, painted] } else { [painted, blanks] });
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut out = line(&mut columns.iter().copied().enumerate(), &|text| style.paint(Role::Heading, text));
    for row in &cells {
        out += &line(&mut row.iter().map(String::as_str).enumerate(), &|text| style.state(text));
    }
    Some(out)
}

/// The members of the rows, in the order in which they first stand; those that no row says anything of are left out.
fn columns<'a>(rows: &[&'a Map<String, Value>]) -> Vec<&'a str> {
    let mut columns: Vec<&str> = Vec::new();
    for (name, value) in rows.iter().flat_map(|row| row.iter()) {
        if !value.is_null() && !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    // What is long stands last, where it may run out of the screen.
    let is_long = |name: &&str| ["key", "actions", "match", "text", "help"].contains(name);
    let (long, short): (Vec<&str>, Vec<&str>) = columns.into_iter().partition(is_long);
    [short, long].concat()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(yes) => (if *yes { "yes" } else { "no" }).to_owned(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => format!("{float:.1}"),
            _ => number.to_string(),
        },
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(map) => {
            map.iter().map(|(name, value)| format!("{name}={}", cell(value))).collect::<Vec<_>>().join(",")
        }
    }
}

/// Takes from the widest columns until all fit.
fn fit(mut widths: Vec<usize>, room: usize) -> Vec<usize> {
    while widths.iter().sum::<usize>() > room {
        let Some(widest) = widths.iter().copied().max().filter(|widest| *widest > LEAST) else { break };
        let next = widths.iter().copied().filter(|width| *width < widest).max().unwrap_or(0).max(LEAST);
        let count = widths.iter().filter(|width| **width == widest).count();
        let excess = widths.iter().sum::<usize>() - room;
        // Down to the next narrower, or as far as it takes.
        let to = next.max(widest.saturating_sub(excess.div_ceil(count)));
        widths.iter_mut().filter(|width| **width == widest).for_each(|width| *width = to);
    }
    widths
}

/// `text` in at most `width` columns.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let (mut cut, mut used) = (String::new(), 0);
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used >= width {
            break;
        }
        cut.push(c);
    }
    cut + "…"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drawn(width: usize) -> String {
        let rows = json!([
            {"mark": 1, "ufid": "107ab6d6-58ce", "key": "in_port(1),eth(src=02:00:00:00:00:01)", "none": null},
            {"mark": 12_345, "ufid": "00000000-0000", "key": "in_port(2)", "confirmed": true},
        ]);
        table(rows.as_array().unwrap(), width, Style::new(false)).unwrap()
    }

    #[test]
    fn a_table_has_a_column_for_each_member_and_numbers_to_the_right() {
        assert_eq!(
            drawn(120),
            " mark  ufid           confirmed  key\n    1  107ab6d6-58ce             in_port(1),eth(src=02:00:00:00:00:01)\n\
             12345  00000000-0000  yes        in_port(2)\n"
        );
    }

    #[test]
    fn the_widest_columns_give_way_until_it_fits() {
        for width in [40, 50, 60, 80] {
            let table = drawn(width);
            assert!(table.lines().all(|line| line.width() <= width), "{width}:\n{table}");
        }
        assert!(drawn(60).contains("in_port(1),eth(src=02:00:0…"), "{}", drawn(60));
        assert_eq!(fit(vec![30, 10, 20], 40), [15, 10, 15]);
        assert_eq!(fit(vec![8, 8], 2), [6, 6], "no column vanishes");
    }

    #[test]
    fn what_is_no_list_of_objects_is_no_table() {
        assert_eq!(table(&[json!(1)], 80, Style::new(false)), None);
        assert_eq!(table(&[], 80, Style::new(false)).as_deref(), Some("\n"));
    }
}
