//! [`Bar`]: how far a long command is, on a terminal's last line.

use std::io::Write;

/// A line that is drawn over itself, and gone in the end.
pub struct Bar<'a> {
    width: usize,
    out: &'a mut dyn Write,
    shown: bool,
}

impl<'a> Bar<'a> {
    pub fn new(width: usize, out: &'a mut dyn Write) -> Bar<'a> {
        Bar { width, out, shown: false }
    }

    /// `total` is 0 while nobody knows it.
    pub fn show(&mut self, done: u64, total: u64) {
        // What cannot be drawn is not missed.
        let _ = write!(self.out, "\r{}", line(done, total, self.width.saturating_sub(1)));
        let _ = self.out.flush();
        self.shown = true;
    }

    pub fn remove(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(self.out, "\r{}\r", " ".repeat(self.width.saturating_sub(1)));
            let _ = self.out.flush();
        }
    }
}

fn line(done: u64, total: u64, width: usize) -> String {
    if total == 0 {
        return format!("{done} done");
    }
    let done = done.min(total);
    let percent = format!(" {:>3} %", 100 * u128::from(done) / u128::from(total));
    let room = width.saturating_sub(percent.len() + 2);
    let filled = (room as u128 * u128::from(done) / u128::from(total)) as usize;
    format!("[{}{}]{percent}", "#".repeat(filled), " ".repeat(room - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows_within_its_line_and_goes_without_a_trace() {
        assert_eq!(line(1, 2, 20), "[######      ]  50 %");
        assert_eq!(line(9, 2, 20), "[############] 100 %");
        assert_eq!(line(7, 0, 20), "7 done");
        assert_eq!(line(1, u64::MAX, 5), "[]   0 %");
        let mut out = Vec::new();
        let mut bar = Bar::new(21, &mut out);
        bar.show(1, 2);
        bar.remove();
        bar.remove();
        assert_eq!(String::from_utf8(out).unwrap(), format!("\r[######      ]  50 %\r{}\r", " ".repeat(20)));
    }
}
