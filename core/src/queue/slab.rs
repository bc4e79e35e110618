//! Where waiting entries are kept: one vector of nodes, threaded by two doubly linked lists.
//!
//! A node is in the list of its lane and in the list of its level at once, so it can be taken out of both from anywhere
//! in constant time. Freed nodes are used again before the vector grows, so nothing is allocated once the queue has
//! been as long as it gets.

use super::Class;

/// No node, no lane.
pub(super) const NIL: u32 = u32::MAX;

/// The two lists a node is in.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Entries of one lane at one level.
    Lane = 0,
    /// Entries of all lanes at one level.
    Level = 1,
}

#[derive(Clone, Copy)]
struct Links {
    previous: u32,
    next: u32,
}

const UNLINKED: Links = Links {
    previous: NIL,
    next: NIL,
};

/// Ends of a list; its entries are in the order in which they joined their level, earliest first.
#[derive(Clone, Copy)]
pub(super) struct List {
    pub(super) head: u32,
    pub(super) tail: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { head: NIL, tail: NIL }
    }
}

impl List {
    pub(super) fn is_empty(self) -> bool {
        self.head == NIL
    }
}

/// What the queue knows of an entry.
#[derive(Clone, Copy)]
pub(super) struct Meta {
    pub(super) lane: u32,
    pub(super) class: Class,
    /// Its class, raised by ageing.
    pub(super) level: usize,
    pub(super) cost: u64,
    /// Cost of the entries that were let past it while it did not fit.
    pub(super) passed: u64,
    pub(super) arrived: u64,
    /// When it reached its level.
    pub(super) joined: u64,
    pub(super) deadline: u64,
}

struct Node<T> {
    /// Counts the uses of this node, so that a ticket of an earlier one means nothing.
    generation: u32,
    links: [Links; 2],
    entry: Option<(Meta, T)>,
}

pub(super) struct Slab<T> {
    nodes: Vec<Node<T>>,
    /// First free node; free nodes are chained by their lane links.
    free: u32,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self {
            nodes: Vec::new(),
            free: NIL,
        }
    }

    /// Keeps an entry, in no list yet; its node and generation.
    pub(super) fn insert(&mut self, meta: Meta, item: T) -> (u32, u32) {
        if self.free == NIL {
            let index = u32::try_from(self.nodes.len()).expect("the capacity is below 2^24");
            self.nodes.push(Node {
                generation: 0,
                links: [UNLINKED; 2],
                entry: Some((meta, item)),
            });
            return (index, 0);
        }
        let index = self.free;
        let node = &mut self.nodes[index as usize];
        self.free = node.links[Kind::Lane as usize].next;
        node.links = [UNLINKED; 2];
        node.entry = Some((meta, item));
        (index, node.generation)
    }

    /// Gives up a node that is in no list.
    pub(super) fn remove(&mut self, index: u32) -> (Meta, T) {
        let node = &mut self.nodes[index as usize];
        let entry = node.entry.take().expect("a listed node holds an entry");
        node.generation = node.generation.wrapping_add(1);
        node.links[Kind::Lane as usize].next = self.free;
        self.free = index;
        entry
    }

    pub(super) fn holds(&self, index: u32, generation: u32) -> bool {
        self.nodes
            .get(index as usize)
            .is_some_and(|node| node.generation == generation && node.entry.is_some())
    }

    pub(super) fn meta(&self, index: u32) -> &Meta {
        let (meta, _) = self.nodes[index as usize]
            .entry
            .as_ref()
            .expect("a listed node holds an entry");
        meta
    }

    pub(super) fn item(&self, index: u32) -> &T {
        let (_, item) = self.nodes[index as usize]
            .entry
            .as_ref()
            .expect("a listed node holds an entry");
        item
    }

    pub(super) fn meta_mut(&mut self, index: u32) -> &mut Meta {
        let (meta, _) = self.nodes[index as usize]
            .entry
            .as_mut()
            .expect("a listed node holds an entry");
        meta
    }

    pub(super) fn next(&self, kind: Kind, index: u32) -> u32 {
        self.nodes[index as usize].links[kind as usize].next
    }

    /// Puts a node behind all that joined no later. Constant time for one that has just joined.
    pub(super) fn link(&mut self, kind: Kind, list: &mut List, index: u32) {
        let joined = self.meta(index).joined;
        let mut previous = list.tail;
        while previous != NIL && self.meta(previous).joined > joined {
            previous = self.nodes[previous as usize].links[kind as usize].previous;
        }
        let next = match previous {
            NIL => std::mem::replace(&mut list.head, index),
            _ => std::mem::replace(
                &mut self.nodes[previous as usize].links[kind as usize].next,
                index,
            ),
        };
        match next {
            NIL => list.tail = index,
            _ => self.nodes[next as usize].links[kind as usize].previous = index,
        }
        self.nodes[index as usize].links[kind as usize] = Links { previous, next };
    }

    pub(super) fn unlink(&mut self, kind: Kind, list: &mut List, index: u32) {
        let Links { previous, next } =
            std::mem::replace(&mut self.nodes[index as usize].links[kind as usize], UNLINKED);
        match previous {
            NIL => list.head = next,
            _ => self.nodes[previous as usize].links[kind as usize].next = next,
        }
        match next {
            NIL => list.tail = previous,
            _ => self.nodes[next as usize].links[kind as usize].previous = previous,
        }
    }
}
