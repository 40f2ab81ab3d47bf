//! [`Stack`]: hands reference-counted nodes from many threads to one, without a lock and without an allocation.
//!
//! The links lie in the nodes, so pushing costs one compare-and-swap. The receiver takes *everything* at once and
//! gets it in the order of pushing; nobody ever takes a single node off a shared stack, so the ABA problem (R. K.
//! Treiber, "Systems Programming: Coping with Parallelism", 1986) cannot arise.
//!
//! ```text
//!   claim        push            take_all           next
//!   Arc<Node> ──► Claimed ──► head ─► N3 ─► N2 ─► N1 ──► List: N1, N2, N3 ──► Arc<Node>, claim given up
//! ```
//!
//! # The claim
//! A node has [`LINKS`] links and can stand in one stack per link. [`claim`](Node::claim) says which thread may use a
//! link: it succeeds for one thread, until the node has come out of the stack again. This is also the *attention bit*
//! of whoever builds on it. Giving up and claiming are read-modify-writes of the same flag, so:
//!
//! - a claim that succeeds sees all that the last receiver did before it gave the link up;
//! - a claim that **fails** has been seen by the receiver that gives the link up next: what the failing thread wrote
//!   before is visible to that receiver when it gets the node. So nobody needs to push twice.

use std::ops::Deref;
use std::ptr;

use crate::sync::{Arc, AtomicBool, AtomicPtr, AtomicU32, Ordering};

/// Links in a node: how many stacks it can stand in at once.
pub const LINKS: usize = 3;

/// A value that can stand in stacks.
///
/// The links come first: in an `Arc` they then share a cache line with the count of references, mostly, and a push
/// touches one line of the node instead of two.
#[repr(C)]
pub struct Node<T> {
    links: [Link<T>; LINKS],
    value: T,
}

struct Link<T> {
    /// The node below. Belongs to whoever holds the claim.
    next: AtomicPtr<Node<T>>,
    /// What the node carries to the receiver. Belongs to whoever holds the claim.
    weight: AtomicU32,
    claimed: AtomicBool,
}

impl<T> Node<T> {
    pub fn new(value: T) -> Node<T> {
        let link = || Link {
            next: AtomicPtr::new(ptr::null_mut()),
            weight: AtomicU32::new(0),
            claimed: AtomicBool::new(false),
        };
        Node { links: [link(), link(), link()], value }
    }

    /// The right to push `node` by link `AT`; `None` while another holds it or the node stands in a stack.
    pub fn claim<const AT: usize>(node: &Arc<Node<T>>) -> Option<Claimed<T, AT>> {
        if node.link::<AT>().claimed.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(Claimed { node: Some(Arc::clone(node)) })
    }

    /// Whether link `AT` is claimed; may be out of date at once.
    pub fn is_claimed<const AT: usize>(node: &Node<T>) -> bool {
        node.link::<AT>().claimed.load(Ordering::Acquire)
    }

    #[inline]
    fn link<const AT: usize>(&self) -> &Link<T> {
        const { assert!(AT < LINKS, "a node has LINKS links") };
        &self.links[AT]
    }

    #[inline]
    fn give_up<const AT: usize>(&self) {
        // Not a store: only by reading what a failed claim wrote is that thread's work visible to us.
        self.link::<AT>().claimed.swap(false, Ordering::AcqRel);
    }
}

impl<T> Deref for Node<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

/// A node whose link `AT` is ours. Dropping it gives the link up.
#[must_use = "a claim that is dropped gives the link up"]
pub struct Claimed<T, const AT: usize> {
    /// `None` only once it has been pushed.
    node: Option<Arc<Node<T>>>,
}

impl<T, const AT: usize> Claimed<T, AT> {
    /// Writes a weight on the link, which comes out with the node whatever becomes of its content meanwhile.
    pub fn weighing(self, weight: u32) -> Claimed<T, AT> {
        if let Some(node) = &self.node {
            node.link::<AT>().weight.store(weight, Ordering::Relaxed);
        }
        self
    }
}

impl<T, const AT: usize> Drop for Claimed<T, AT> {
    fn drop(&mut self) {
        if let Some(node) = &self.node {
            node.give_up::<AT>();
        }
    }
}

/// The shared end.
///
/// # Thread-safety
/// Any thread may push, any may take. Neither waits: a push repeats its compare-and-swap only when another push or
/// take succeeded meanwhile.
pub struct Stack<T, const AT: usize> {
    /// The newest node; or null; or [`expected`]. Owns one reference to each node below and including it.
    head: AtomicPtr<Node<T>>,
}

// SAFETY: the stack owns `Arc<Node<T>>`s as raw pointers, which is why these do not follow by themselves. It moves
// them between threads and drops them on any, which is sound exactly when `Arc<Node<T>>` is `Send`, that is when `T`
// is `Send + Sync`. It gives out no reference to a node in it.
unsafe impl<T: Send + Sync, const AT: usize> Send for Stack<T, AT> {}
// SAFETY: as above; all methods take `&self` and go through the atomic head.
unsafe impl<T: Send + Sync, const AT: usize> Sync for Stack<T, AT> {}

impl<T, const AT: usize> Default for Stack<T, AT> {
    fn default() -> Self {
        Stack { head: AtomicPtr::new(ptr::null_mut()) }
    }
}

impl<T, const AT: usize> Stack<T, AT> {
    /// Puts a node on top. `true` when the stack was empty.
    pub fn push(&self, claimed: Claimed<T, AT>) -> bool {
        is_no_node(self.exchange(claimed))
    }

    /// Puts a node on top. `true` when the taker asked to be told, with [`Stack::expect`].
    #[inline]
    pub fn push_and_tell(&self, claimed: Claimed<T, AT>) -> bool {
        self.exchange(claimed) == expected()
    }

    /// Asks whoever pushes next on the empty stack to tell the taker. `false` when there is something to take. For a
    /// stack that one thread takes from: the next take that finds something forgets that it was asked.
    pub fn expect(&self) -> bool {
        let head = self.head.load(Ordering::Acquire);
        // An exchange, so that no push goes unseen that does not see this.
        let marked =
            head.is_null() && self.head.compare_exchange(head, expected(), Ordering::AcqRel, Ordering::Acquire).is_ok();
        marked || head == expected()
    }

    /// Puts a node on top and returns what was there.
    #[inline]
    fn exchange(&self, mut claimed: Claimed<T, AT>) -> *mut Node<T> {
        // A claim is pushed once, as it is moved in here, so it has its node.
        let Some(node) = claimed.node.take() else { return ptr::null_mut() };
        let raw = Arc::into_raw(node).cast_mut();
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            let below = if is_no_node(head) { ptr::null_mut() } else { head };
            // SAFETY: `raw` came from `Arc::into_raw` above and its reference is still ours: nobody else can reach it
            // through the stack before the exchange below succeeds, so the node is alive. Only the holder of the
            // claim, which is us, writes `next`.
            unsafe { &*raw }.link::<AT>().next.store(below, Ordering::Relaxed);
            // Release: who takes the node sees its `next`, and what we did before. Takers of a later head see it too,
            // since every push is a read-modify-write and so carries on our release sequence. Acquire: who finds that
            // the taker expects it sees what the taker did before.
            match self.head.compare_exchange_weak(head, raw, Ordering::AcqRel, Ordering::Relaxed) {
                // The reference belongs to the stack now; the node may already be gone.
                Ok(_) => return head,
                Err(now) => head = now,
            }
        }
    }

    /// Whether there is nothing to take; may be out of date at once.
    #[inline]
    pub fn is_empty(&self) -> bool {
        is_no_node(self.head.load(Ordering::Acquire))
    }

    /// Takes all nodes, oldest first.
    pub fn take_all(&self) -> List<T, AT> {
        if self.is_empty() {
            return List::default();
        }
        let mut newest = self.head.swap(ptr::null_mut(), Ordering::Acquire);
        let mut oldest = ptr::null_mut();
        while !is_no_node(newest) {
            // SAFETY: it is a node's address, being neither of the two heads of an empty stack. The swap made this chain, and the reference to each of its nodes, ours alone; a node is alive as
            // long as its reference is not given back, which only `List` does. Its claim is still held on its behalf,
            // so no other thread touches `next`.
            let next = &unsafe { &*newest }.link::<AT>().next;
            let below = next.load(Ordering::Relaxed);
            next.store(oldest, Ordering::Relaxed);
            oldest = newest;
            newest = below;
        }
        List { head: oldest }
    }
}

/// The head of an empty stack whose taker wants to be told of the next push. No node lies at an odd address.
#[inline]
fn expected<T>() -> *mut Node<T> {
    ptr::without_provenance_mut(1)
}

#[inline]
fn is_no_node<T>(head: *mut Node<T>) -> bool {
    head.is_null() || head == expected()
}

impl<T, const AT: usize> Drop for Stack<T, AT> {
    fn drop(&mut self) {
        drop(self.take_all());
    }
}

/// Nodes taken from a stack, oldest first. Each keeps its claim until it is reached.
pub struct List<T, const AT: usize> {
    /// The oldest node, or null. The list owns one reference to each node of the chain.
    head: *mut Node<T>,
}

// SAFETY: a list owns `Arc<Node<T>>`s as raw pointers and lets nobody else reach them; it may move between threads
// when they may, that is when `T` is `Send + Sync`.
unsafe impl<T: Send + Sync, const AT: usize> Send for List<T, AT> {}

impl<T, const AT: usize> Default for List<T, AT> {
    fn default() -> Self {
        List { head: ptr::null_mut() }
    }
}

impl<T, const AT: usize> List<T, AT> {
    pub fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// The oldest node and its weight: 0, or what it was claimed with the last time that it got one. Its claim is given
    /// up first: a claim that fails is one whose work the caller will see.
    pub fn pop(&mut self) -> Option<(Arc<Node<T>>, u32)> {
        if self.head.is_null() {
            return None;
        }
        // SAFETY: `head` came from `Arc::into_raw` in `push`; the list owns that reference, and moving `head` on below
        // makes sure that it is turned back only once.
        let node = unsafe { Arc::from_raw(self.head.cast_const()) };
        // Before the claim goes: whoever claims next writes both.
        let weight = node.link::<AT>().weight.load(Ordering::Relaxed);
        self.head = node.link::<AT>().next.load(Ordering::Relaxed);
        node.give_up::<AT>();
        Some((node, weight))
    }
}

impl<T, const AT: usize> Iterator for List<T, AT> {
    type Item = Arc<Node<T>>;

    /// The oldest node, as [`List::pop`].
    fn next(&mut self) -> Option<Arc<Node<T>>> {
        self.pop().map(|(node, _)| node)
    }
}

impl<T, const AT: usize> Drop for List<T, AT> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_out_in_the_order_of_pushing() {
        let stack: Stack<u32, 0> = Stack::default();
        let nodes: Vec<_> = (0..5).map(|i| Arc::new(Node::new(i))).collect();
        for (i, node) in nodes.iter().enumerate() {
            assert_eq!(stack.push(Node::claim(node).unwrap()), i == 0);
        }
        assert_eq!(stack.take_all().map(|n| **n).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(stack.is_empty());
    }

    #[test]
    fn a_node_stands_in_a_stack_at_most_once_a_link() {
        let (first, second): (Stack<u32, 0>, Stack<u32, 1>) = Default::default();
        let node = Arc::new(Node::new(7));
        first.push(Node::claim(&node).unwrap());
        assert!(Node::claim::<0>(&node).is_none());
        second.push(Node::claim(&node).unwrap());
        let mut list = first.take_all();
        assert!(Node::claim::<0>(&node).is_none(), "still in the taken list");
        assert!(list.next().is_some());
        assert!(Node::claim::<0>(&node).is_some());
    }

    #[test]
    fn a_weight_comes_out_as_it_went_in_and_each_link_has_its_own() {
        let (first, second): (Stack<u32, 0>, Stack<u32, 1>) = Default::default();
        let node = Arc::new(Node::new(7));
        first.push(Node::claim(&node).unwrap().weighing(3));
        second.push(Node::claim(&node).unwrap().weighing(4));
        assert_eq!(first.take_all().pop().map(|(_, weight)| weight), Some(3));
        assert_eq!(second.take_all().pop().map(|(_, weight)| weight), Some(4));
    }

    #[test]
    fn a_taker_is_told_of_the_first_push_on_an_empty_stack_that_it_expects() {
        let stack: Stack<u32, 0> = Stack::default();
        let nodes: Vec<_> = (0..3).map(|i| Arc::new(Node::new(i))).collect();
        assert!(!stack.push_and_tell(Node::claim(&nodes[0]).unwrap()));
        assert!(!stack.expect(), "there is something to take");
        assert_eq!(stack.take_all().count(), 1);
        assert!(stack.expect());
        assert!(stack.expect(), "and again");
        assert!(stack.is_empty());
        assert_eq!(stack.take_all().count(), 0);
        assert!(stack.push_and_tell(Node::claim(&nodes[1]).unwrap()));
        assert!(!stack.push_and_tell(Node::claim(&nodes[2]).unwrap()));
        assert_eq!(stack.take_all().map(|n| **n).collect::<Vec<_>>(), [1, 2]);
        assert!(stack.expect());
        assert!(stack.push(Node::claim(&nodes[0]).unwrap()), "it was empty");
    }

    #[test]
    fn what_is_left_in_a_stack_or_list_is_freed_with_it() {
        let node = Arc::new(Node::new(1));
        let stack: Stack<u32, 2> = Stack::default();
        stack.push(Node::claim(&node).unwrap());
        assert_eq!(Arc::strong_count(&node), 2);
        drop(stack);
        assert_eq!(Arc::strong_count(&node), 1);
        let stack: Stack<u32, 2> = Stack::default();
        stack.push(Node::claim(&node).unwrap());
        drop(stack.take_all());
        assert_eq!(Arc::strong_count(&node), 1);
        assert!(Node::claim::<2>(&node).is_some());
    }
}
