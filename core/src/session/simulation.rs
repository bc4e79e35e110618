//! Gateways, conversations and an unfriendly network, on virtual time.
//!
//! The world knows the truth: which gateways are there, what the route is, what each client has seen. Gateways learn of changes
//! late, each at its own time, and may miss those in between; messages are lost, doubled and overtake each other; processes
//! die at any moment. After each response the world looks whether the client has been switched without need.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

pub(super) use parts::{CALM, Dice, Network, Report, route, settings};

use super::wire::Envelope;
use super::*;

mod parts;

pub(super) const STABLE: &str = "support-1";
pub(super) const CANDIDATE: &str = "support-2";
/// How late a gateway may learn of a change, in milliseconds.
const LAG: u64 = 300;

struct Gate {
    id: MemberId,
    shard: Shard,
    alive: bool,
    leaving: bool,
    /// The newest changes it has learnt of.
    members_seen: usize,
    route_seen: i64,
    tick_at: u64,
}

#[derive(Clone, Debug, Default)]
struct Turn {
    gate: usize,
    ticket: Ticket,
    began: u64,
    assigned: Option<(u64, Arc<str>)>,
    released: Option<bool>,
}

struct Conversation {
    key: SessionKey,
    left: u32,
    /// What the client has seen, and when it was assigned.
    seen: Option<(Arc<str>, u64)>,
    turn: Option<Turn>,
    /// It may be switched without it being a fault, and why it is on the books.
    excused: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Deliver(usize, Envelope),
    Tick(usize),
    Members(usize, usize),
    Route(usize, i64),
    Begin(usize),
    Seen(usize, Ticket),
    Crash(usize),
    Unlist(MemberId),
    Join,
    Leave,
    Exit(usize),
    Change(Route),
}

pub(super) struct World {
    pub now: u64,
    dice: Dice,
    network: Network,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<(u64, u64), Event>,
    order: u64,
    gates: Vec<Gate>,
    conversations: Vec<Conversation>,
    members: Vec<Vec<MemberId>>,
    routes: BTreeMap<i64, Route>,
    /// When each revision last stopped to serve.
    ended: BTreeMap<Arc<str>, u64>,
    tickets: BTreeMap<Ticket, usize>,
    think: u64,
    max_entries: usize,
    through_json: bool,
    pub report: Report,
}

impl World {
    pub fn new(seed: u64, gates: usize, network: Network, max_entries: usize, think: u64) -> Self {
        let mut world = Self {
            now: 0,
            dice: Dice::new(seed),
            network,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            order: 0,
            gates: Vec::new(),
            conversations: Vec::new(),
            members: vec![vec![]],
            routes: BTreeMap::new(),
            ended: BTreeMap::new(),
            tickets: BTreeMap::new(),
            think,
            max_entries,
            through_json: seed.is_multiple_of(16),
            report: Report::default(),
        };
        world.routes.insert(1, route(1, &[(STABLE, 100, true, 1)]));
        for _ in 0..gates {
            world.join();
        }
        for gate in 0..gates {
            world.learn_members(gate, world.members.len() - 1);
        }
        world
    }

    fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((time.max(self.now), self.order)));
        self.bodies.insert((time.max(self.now), self.order), event);
    }

    /// Conversations that begin within `within` milliseconds.
    pub fn converse(&mut self, number: usize, turns: u32, within: u64) {
        for _ in 0..number {
            let key = SessionKey::from_random(self.dice.bits(), self.dice.bits());
            self.conversations.push(Conversation {
                key,
                left: turns,
                seen: None,
                turn: None,
                excused: false,
            });
            let start = self.now + self.dice.between(0, within);
            self.at(start, Event::Begin(self.conversations.len() - 1));
        }
    }

    pub fn change_at(&mut self, time: u64, route: Route) {
        self.at(time, Event::Change(route));
    }

    pub fn crash_at(&mut self, time: u64, gates: usize) {
        self.at(time, Event::Crash(gates));
    }

    pub fn join_at(&mut self, time: u64) {
        self.at(time, Event::Join);
    }

    pub fn leave_at(&mut self, time: u64) {
        self.at(time, Event::Leave);
    }

    pub fn run(&mut self, until: u64) {
        while let Some(Reverse(place)) = self.events.peek().copied() {
            if place.0 > until {
                break;
            }
            self.events.pop();
            self.now = place.0;
            if let Some(event) = self.bodies.remove(&place) {
                self.happen(event);
            }
        }
        self.now = until;
        let unfinished = |conversation: &&Conversation| conversation.left > 0;
        self.report.unfinished = self.conversations.iter().filter(unfinished).count() as u64;
        let on_candidate = |c: &&Conversation| c.seen.as_ref().is_some_and(|(seen, _)| &**seen == CANDIDATE);
        self.report.on_candidate = self.conversations.iter().filter(on_candidate).count() as u64;
        self.report.excused = self.conversations.iter().filter(|c| c.excused).count() as u64;
    }

    pub fn counts(&self) -> impl Iterator<Item = Counts> {
        self.gates.iter().map(|gate| gate.shard.counts())
    }

    pub fn moved(&self) -> u64 {
        self.counts()
            .map(|counts| counts.moved.values().sum::<u64>())
            .sum()
    }

    fn current(&self) -> &Route {
        self.routes.last_key_value().expect("there is a first route").1
    }

    fn listed(&self) -> Vec<MemberId> {
        self.members.last().cloned().unwrap_or_default()
    }

    /// The world's list of members has changed; everybody hears of it sooner or later.
    fn publish(&mut self, members: Vec<MemberId>) {
        self.members.push(members);
        let version = self.members.len() - 1;
        for gate in 0..self.gates.len() {
            // Some changes are only seen together with the next one.
            let delay = if self.dice.chance(25) {
                LAG
            } else {
                self.dice.between(0, LAG)
            };
            self.at(self.now + delay, Event::Members(gate, version));
        }
    }

    fn join(&mut self) {
        let name = format!("gateway-{}", self.gates.len());
        let settings = Settings {
            seed: self.dice.bits(),
            ..settings(&name, self.max_entries)
        };
        let id = settings.me;
        self.gates.push(Gate {
            id,
            shard: Shard::new(settings),
            alive: true,
            leaving: false,
            members_seen: 0,
            route_seen: -1,
            tick_at: u64::MAX,
        });
        let mut members = self.listed();
        members.push(id);
        self.publish(members);
        let gate = self.gates.len() - 1;
        self.learn_members(gate, self.members.len() - 1);
        // What it lists first may be a little old.
        let routes: Vec<i64> = self.routes.keys().copied().collect();
        let behind = usize::from(routes.len() > 1 && self.dice.chance(20));
        if let Some(generation) = routes.get(routes.len() - 1 - behind) {
            self.learn_route(gate, *generation);
        }
        let delay = self.dice.between(0, LAG);
        self.at(self.now + delay, Event::Route(gate, self.current().generation));
    }

    fn learn_members(&mut self, gate: usize, version: usize) {
        let now = self.now;
        let Some(listed) = self.members.get(version).cloned() else {
            return;
        };
        let place = &mut self.gates[gate];
        if place.alive && version > place.members_seen {
            place.members_seen = version;
            let mut out = Vec::new();
            place.shard.set_members(now, listed, &mut out);
            self.carry_out(gate, out);
        }
    }

    fn learn_route(&mut self, gate: usize, generation: i64) {
        let now = self.now;
        let Some(route) = self.routes.get(&generation).cloned() else {
            return;
        };
        let place = &mut self.gates[gate];
        if place.alive && generation > place.route_seen {
            place.route_seen = generation;
            let mut out = Vec::new();
            place.shard.set_route(now, &route, &mut out);
            self.carry_out(gate, out);
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Deliver(gate, envelope) if self.gates[gate].alive => {
                let mut out = Vec::new();
                self.gates[gate].shard.handle(now, envelope, &mut out);
                self.carry_out(gate, out);
            }
            Event::Tick(gate) if self.gates[gate].alive && self.gates[gate].tick_at == now => {
                let mut out = Vec::new();
                self.gates[gate].tick_at = u64::MAX;
                self.gates[gate].shard.tick(now, &mut out);
                self.carry_out(gate, out);
                if self.gates[gate].leaving && self.gates[gate].shard.is_drained(now) {
                    self.at(now, Event::Exit(gate));
                }
            }
            Event::Deliver(..) | Event::Tick(_) => {}
            Event::Members(gate, version) => self.learn_members(gate, version),
            Event::Route(gate, generation) => self.learn_route(gate, generation),
            Event::Begin(conversation) => self.begin(conversation),
            Event::Seen(conversation, ticket) => self.see(conversation, ticket),
            Event::Crash(number) => self.crash(number),
            Event::Unlist(member) => {
                let mut members = self.listed();
                members.retain(|listed| *listed != member);
                self.publish(members);
            }
            Event::Join => self.join(),
            Event::Leave => self.leave(),
            Event::Exit(gate) if self.gates[gate].alive => {
                if !self.gates[gate].shard.is_drained(now) {
                    self.report.undrained += 1;
                }
                self.stop(gate);
            }
            Event::Exit(_) => {}
            Event::Change(route) => {
                let keeps = |name: &str| {
                    let share = route.shares.iter().find(|share| &*share.revision == name);
                    share.is_some_and(|share| share.keeps || share.weight > 0)
                };
                let ended: Vec<Arc<str>> = self
                    .current()
                    .shares
                    .iter()
                    .map(|share| share.revision.clone())
                    .collect();
                for name in ended.into_iter().filter(|name| !keeps(name)) {
                    self.ended.insert(name, now);
                }
                let generation = route.generation;
                self.routes.insert(generation, route);
                for gate in 0..self.gates.len() {
                    let delay = if self.dice.chance(20) {
                        LAG
                    } else {
                        self.dice.between(0, LAG)
                    };
                    self.at(now + delay, Event::Route(gate, generation));
                }
            }
        }
    }

    fn up(&self) -> Vec<usize> {
        let up = |(_, gate): &(usize, &Gate)| gate.alive;
        self.gates
            .iter()
            .enumerate()
            .filter(up)
            .map(|(index, _)| index)
            .collect()
    }

    /// Kills that many at once; who has lost both homes by it is excused.
    fn crash(&mut self, number: usize) {
        let view = View::new(self.gates.iter().filter(|gate| gate.alive).map(|gate| gate.id));
        let mut victims = Vec::new();
        for _ in 0..number {
            let up = self.up();
            if up.len() < 2 {
                break;
            }
            let victim = up[self.dice.between(0, up.len() as u64 - 1) as usize];
            self.stop(victim);
            victims.push(self.gates[victim].id);
        }
        for conversation in &mut self.conversations {
            let homes = view.homes(conversation.key);
            conversation.excused |=
                homes.second.is_some() && homes.iter().all(|home| victims.contains(&home));
        }
        for victim in victims {
            let delay = self.dice.between(200, 2000);
            self.at(self.now + delay, Event::Unlist(victim));
        }
    }

    /// The process is gone, and so are the requests that it was serving: their clients try again elsewhere.
    fn stop(&mut self, gate: usize) {
        self.gates[gate].alive = false;
        let (now, mut again) = (self.now, Vec::new());
        for (index, conversation) in self.conversations.iter_mut().enumerate() {
            if conversation.turn.as_ref().is_some_and(|turn| turn.gate == gate) {
                conversation.turn = None;
                again.push(index);
            }
        }
        for index in again {
            self.report.retried += 1;
            let delay = self.dice.between(10, 200);
            self.at(now + delay, Event::Begin(index));
        }
    }

    fn leave(&mut self) {
        let stays: Vec<usize> = self
            .up()
            .into_iter()
            .filter(|gate| !self.gates[*gate].leaving)
            .collect();
        if stays.len() < 2 {
            return;
        }
        let gate = stays[self.dice.between(0, stays.len() as u64 - 1) as usize];
        let (now, id) = (self.now, self.gates[gate].id);
        self.gates[gate].leaving = true;
        let mut out = Vec::new();
        self.gates[gate].shard.leave(now, &mut out);
        self.carry_out(gate, out);
        let delay = self.dice.between(0, LAG);
        self.at(now + delay, Event::Unlist(id));
        self.at(now + 5000, Event::Exit(gate));
    }

    fn begin(&mut self, index: usize) {
        let up = self.up();
        let Some(gate) = up
            .get(self.dice.between(0, (up.len() as u64).max(1) - 1) as usize)
            .copied()
        else {
            return;
        };
        let (now, key) = (self.now, self.conversations[index].key);
        let ticket = self.dice.bits();
        self.tickets.insert(ticket, index);
        self.conversations[index].turn = Some(Turn {
            gate,
            ticket,
            began: now,
            ..Turn::default()
        });
        let mut out = Vec::new();
        match self.gates[gate].shard.lookup(key, now) {
            Some(assignment) => {
                out.push(Output::Assigned { ticket, assignment });
                out.push(Output::Released {
                    ticket,
                    protected: true,
                });
            }
            None => self.gates[gate].shard.open(now, ticket, key, &mut out),
        }
        self.carry_out(gate, out);
    }

    fn carry_out(&mut self, gate: usize, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send(envelope) => self.transmit(envelope),
                Output::Assigned { ticket, assignment } => {
                    let now = self.now;
                    if let Some((_, turn)) = self.turn(ticket) {
                        assert!(turn.assigned.is_none(), "a request is sent once");
                        turn.assigned = Some((now, assignment.revision));
                        let took = now - turn.began;
                        self.report.slowest_assignment = self.report.slowest_assignment.max(took);
                    }
                }
                Output::Released { ticket, protected } => {
                    let now = self.now;
                    if let Some((index, turn)) = self.turn(ticket) {
                        assert!(turn.released.is_none(), "a response is let go once");
                        turn.released = Some(protected);
                        let (assigned, _) = turn.assigned.clone().expect("assigned before it is released");
                        self.report.slowest_release = self.report.slowest_release.max(now - assigned);
                        self.report.unprotected += u64::from(!protected);
                        let first_byte = now.max(assigned + self.dice.between(5, 100));
                        self.at(first_byte, Event::Seen(index, ticket));
                    }
                }
                Output::Unrouted { ticket } => {
                    self.report.unrouted += 1;
                    if let Some(index) = self.tickets.remove(&ticket) {
                        self.conversations[index].turn = None;
                        self.at(self.now + 100, Event::Begin(index));
                    }
                }
            }
        }
        let place = &mut self.gates[gate];
        let wanted = self.now + place.shard.next_tick(self.now).max(1);
        self.report.largest_table = self.report.largest_table.max(place.shard.len());
        if place.alive && wanted < place.tick_at {
            place.tick_at = wanted;
            self.at(wanted, Event::Tick(gate));
        }
    }

    fn turn(&mut self, ticket: Ticket) -> Option<(usize, &mut Turn)> {
        let index = *self.tickets.get(&ticket)?;
        let turn = self.conversations[index].turn.as_mut()?;
        (turn.ticket == ticket).then_some((index, turn))
    }

    fn transmit(&mut self, envelope: Envelope) {
        self.report.messages += 1;
        let Some(to) = self.gates.iter().position(|gate| gate.id == envelope.to) else {
            return;
        };
        let envelope = if self.through_json {
            let text = serde_json::to_string(&envelope).expect("an envelope is JSON");
            serde_json::from_str(&text).expect("and comes back")
        } else {
            envelope
        };
        for copy in 0..2 {
            let sent = if copy == 0 {
                !self.dice.chance(self.network.loss_percent)
            } else {
                self.dice.chance(self.network.double_percent)
            };
            if sent {
                let delay = self.dice.between(0, self.network.max_delay);
                self.at(self.now + delay, Event::Deliver(to, envelope.clone()));
            }
        }
    }

    /// The first byte has reached the client.
    fn see(&mut self, index: usize, ticket: Ticket) {
        let now = self.now;
        let kept = |name: &str| {
            self.current()
                .shares
                .iter()
                .any(|s| &*s.revision == name && (s.keeps || s.weight > 0))
        };
        let conversation = &self.conversations[index];
        let Some(turn) = conversation.turn.clone().filter(|turn| turn.ticket == ticket) else {
            return;
        };
        let (assigned, revision) = turn.assigned.expect("assigned before it is seen");
        // What was withdrawn must not be given any more once everybody can know.
        let ended = self.ended.get(&revision).copied();
        let served_dead = ended.is_some_and(|ended| assigned > ended + LAG) && !kept(&revision);
        let stint = match &conversation.seen {
            Some((seen, since)) if *seen == revision => *since,
            Some((seen, since)) => {
                if self.ended.get(seen).is_some_and(|ended| ended + LAG >= *since) {
                    self.report.led_away += 1;
                } else if conversation.excused {
                    self.report.switched_excused += 1;
                } else {
                    self.report.switched += 1;
                }
                assigned
            }
            None => assigned,
        };
        self.report.served_dead += u64::from(served_dead);
        self.report.turns += 1;
        self.tickets.remove(&ticket);
        let think = self.dice.between(self.think / 10, self.think);
        let conversation = &mut self.conversations[index];
        conversation.excused |= turn.released == Some(false);
        conversation.seen = Some((revision, stint));
        conversation.turn = None;
        conversation.left -= 1;
        if conversation.left > 0 {
            self.at(now + think, Event::Begin(index));
        }
    }
}
