//! [`Marks`]: the mark table of one poller, from a flow mark to its flow. The first and cheapest lookup.

use super::flows::FlowRef;
use crate::offload::mark::Mark;

/// Entries in a page; a page is made when the first of its marks is bound.
const PAGE: usize = 4_096;

/// From mark to flow. Memory follows the highest marks in use, by pages, whatever the width of a mark.
#[derive(Default)]
pub struct Marks {
    pages: Vec<Option<Box<[FlowRef; PAGE]>>>,
}

impl Marks {
    pub fn new() -> Marks {
        Marks::default()
    }

    /// The flow that `mark` is bound to; whether it is live is for [`Flows`](super::flows::Flows) to say.
    #[inline]
    pub fn get(&self, mark: Mark) -> Option<FlowRef> {
        let flow = self.pages.get(mark.index() / PAGE)?.as_ref()?[mark.index() % PAGE];
        (flow.generation != 0).then_some(flow)
    }

    /// From now on packets with `mark` belong to `flow`.
    pub fn bind(&mut self, mark: Mark, flow: FlowRef) {
        let page = mark.index() / PAGE;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        self.pages[page].get_or_insert_with(|| Box::new([FlowRef::default(); PAGE]))[mark.index() % PAGE] = flow;
    }

    /// From now on packets with `mark` are looked up, unless the mark belongs to another flow than `flow` by now.
    pub fn unbind(&mut self, mark: Mark, flow: FlowRef) {
        if self.get(mark) == Some(flow)
            && let Some(Some(page)) = self.pages.get_mut(mark.index() / PAGE)
        {
            page[mark.index() % PAGE] = FlowRef::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(n: u32) -> Mark {
        Mark::new(n).unwrap()
    }

    #[test]
    fn a_late_unbind_leaves_the_marks_new_flow_alone() {
        let (old, new) = (FlowRef { index: 1, generation: 1 }, FlowRef { index: 2, generation: 1 });
        let mut marks = Marks::new();
        marks.bind(mark(5), old);
        marks.bind(mark(5), new);
        marks.unbind(mark(5), old);
        assert_eq!(marks.get(mark(5)), Some(new));
        marks.unbind(mark(5), new);
        assert_eq!(marks.get(mark(5)), None);
    }

    #[test]
    fn a_mark_that_was_never_bound_is_no_flow_and_costs_no_memory() {
        let marks = Marks::new();
        assert_eq!(marks.get(mark(u32::MAX)), None);
        assert!(marks.pages.is_empty());
    }
}
