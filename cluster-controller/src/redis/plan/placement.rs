//! Which primaries go to which replicas so that the loss of a zone or of a Kubernetes node costs as few of them as possible.
//!
//! The best placement has, in this order: as few primaries as possible in zones that have so many that the others could not elect a
//! replica without them; the least sum of the squares of the primaries on each Kubernetes node, and with it the least highest number of
//! them (Harvey, Ladner, Lovász, Tamir: "Semi-matchings for bipartite graphs and load balancing"); the fewest hand-overs from where the
//! primaries are. A primary can only go to a linked replica, so this is a flow of least cost from shards to Kubernetes nodes to
//! zones, with costs that rise ever faster. It is best when no cycle of the residual graph has a negative cost (Klein 1967; Ahuja, Magnanti,
//! Orlin: "Network Flows", 9.6), and each such cycle that is carried out makes it better.
//!
//! One hand-over is done at a time, and afterwards everything is computed again. A hand-over swaps a primary and a replica, so the
//! placements that can be reached stay the same, and the best ones are one hand-over nearer: no hand-over is ever taken back, and at
//! the goal there is none.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Add,
};

/// Where the primary of a shard is, and where else it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement<'a> {
    /// The Kubernetes node of the primary.
    pub at: &'a str,
    /// The Kubernetes nodes of replicas that are linked and caught up.
    pub replicas: BTreeSet<&'a str>,
}

/// A primary goes from one Kubernetes node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation<'a> {
    /// Index of its placement.
    pub shard: usize,
    /// The Kubernetes node that it goes to.
    pub to: &'a str,
}

/// The zones of Kubernetes nodes by name. A node without one counts as a zone of its own.
pub type NodeZones<'a> = BTreeMap<&'a str, &'a str>;

/// Primaries that may be lost at once so that the others are still the majority, which elects.
pub fn tolerable_loss(primaries: usize) -> usize {
    primaries.saturating_sub(1) / 2
}

/// The next hand-over; none: no placement that these replicas allow is better.
pub fn next<'a>(placements: &[Placement<'a>], zones: &NodeZones<'a>) -> Option<Relocation<'a>> {
    let mut best = Occupancy::of(placements, zones);
    let start = best.clone();
    while let Some(cycle) = best.improvement() {
        best.carry_out(&cycle);
    }
    let moved = best.shards.iter().enumerate();
    let moved = moved.filter(|(_, shard)| shard.at != shard.origin);
    // Of several, the one that makes the most of it alone comes first: the others may have to wait.
    let (shard, to) = moved
        .map(|(shard, choice)| (shard, choice.at))
        .min_by_key(|(shard, to)| (start.change(*shard, *to), start.load(*to), *shard))?;
    let to = best.names.get(to)?;
    Some(Relocation { shard, to })
}

/// How bad a placement is, or how much worse a change makes it. What is named first decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct PlacementCost {
    /// Primaries that zones have beyond what may be lost.
    overload: i64,
    /// Sum of the squares of the primaries on each Kubernetes node.
    squares: i64,
    /// Hand-overs.
    moves: i64,
}

impl Add for PlacementCost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            overload: self.overload + other.overload,
            squares: self.squares + other.squares,
            moves: self.moves + other.moves,
        }
    }
}

/// The Kubernetes nodes that a primary may be on, as indices.
#[derive(Clone, Debug)]
struct ShardChoice {
    origin: usize,
    at: usize,
    options: Vec<usize>,
}

/// A vertex of the graph: the Kubernetes nodes, then the zones, then the cluster as a whole.
type Vertex = usize;

/// An edge that a unit of load can take.
#[derive(Clone, Copy, Debug)]
struct LoadEdge {
    from: Vertex,
    to: Vertex,
    cost: PlacementCost,
    /// The shard whose primary goes from one node to the other. None: a node or zone has one primary more or less.
    shard: Option<usize>,
}

/// A Kubernetes node for each primary.
#[derive(Clone, Debug)]
struct Occupancy<'a> {
    names: Vec<&'a str>,
    /// Index of the zone of each node.
    zone_of: Vec<usize>,
    /// Primaries of each node, then of each zone.
    loads: Vec<i64>,
    shards: Vec<ShardChoice>,
}

impl<'a> Occupancy<'a> {
    fn of(placements: &[Placement<'a>], zones: &NodeZones<'a>) -> Self {
        let nodes: BTreeSet<&str> = placements
            .iter()
            .flat_map(|one| one.replicas.iter().copied().chain([one.at]))
            .collect();
        let names: Vec<&str> = nodes.into_iter().collect();
        let index: BTreeMap<&str, usize> = names.iter().copied().zip(0..).collect();
        let number = |name: &str| index.get(name).copied().unwrap_or_default();
        let mut known: BTreeMap<(bool, &str), usize> = BTreeMap::new();
        let zone_of = names
            .iter()
            .map(|name| {
                // The name of a node may be that of a zone, too.
                let zone = zones.get(name).map_or((false, *name), |zone| (true, *zone));
                let next = known.len();
                *known.entry(zone).or_insert(next)
            })
            .collect();
        let shards = placements
            .iter()
            .map(|one| {
                let at = number(one.at);
                let options = one.replicas.iter().map(|name| number(name));
                let mut options: Vec<usize> = options.chain([at]).collect();
                options.sort_unstable();
                ShardChoice {
                    origin: at,
                    at,
                    options,
                }
            })
            .collect();
        let mut assignment = Self {
            loads: vec![0; names.len() + known.len()],
            names,
            zone_of,
            shards,
        };
        assignment.count();
        assignment
    }

    fn count(&mut self) {
        self.loads.fill(0);
        let places: Vec<Vertex> = self.shards.iter().map(|choice| choice.at).collect();
        for at in places {
            for vertex in [at, self.zone(at)] {
                if let Some(load) = self.loads.get_mut(vertex) {
                    *load += 1;
                }
            }
        }
    }

    /// The vertex of a node's zone.
    fn zone(&self, node: Vertex) -> Vertex {
        self.names.len() + self.zone_of.get(node).copied().unwrap_or_default()
    }

    fn load(&self, vertex: Vertex) -> i64 {
        self.loads.get(vertex).copied().unwrap_or_default()
    }

    /// What a zone with so many primaries costs: those without which there is no majority, and once more those that are one.
    fn overload(&self, load: i64) -> i64 {
        let beyond = |limit: usize| (load - i64::try_from(limit).unwrap_or(i64::MAX)).max(0);
        let primaries = self.shards.len();
        beyond(tolerable_loss(primaries)) + beyond(primaries / 2)
    }

    /// What it costs more to have this primary on another node and nothing else changed.
    fn change(&self, shard: usize, to: Vertex) -> PlacementCost {
        let Some(from) = self.shards.get(shard).map(|choice| choice.at) else {
            return PlacementCost::default();
        };
        let (old, new) = (self.zone(from), self.zone(to));
        let leaves = self.overload(self.load(old) - 1) - self.overload(self.load(old));
        let arrives = self.overload(self.load(new) + 1) - self.overload(self.load(new));
        PlacementCost {
            overload: if old == new { 0 } else { leaves + arrives },
            squares: 2 * (self.load(to) - self.load(from) + 1),
            moves: 0,
        }
    }

    /// Every way in which a unit of load can go.
    fn edges(&self) -> Vec<LoadEdge> {
        let whole = self.loads.len();
        let mut edges = Vec::new();
        let mut edge = |from, to, cost, shard| {
            edges.push(LoadEdge {
                from,
                to,
                cost,
                shard,
            });
        };
        for (shard, choice) in self.shards.iter().enumerate() {
            let moved = |to: usize| i64::from(to != choice.origin);
            for to in choice.options.iter().filter(|to| **to != choice.at) {
                let cost = PlacementCost {
                    moves: moved(*to) - moved(choice.at),
                    ..PlacementCost::default()
                };
                edge(choice.at, *to, cost, Some(shard));
            }
        }
        let squares = |squares| PlacementCost {
            squares,
            ..PlacementCost::default()
        };
        for node in 0..self.names.len() {
            let (load, zone) = (self.load(node), self.zone(node));
            edge(node, zone, squares(2 * load + 1), None);
            if load > 0 {
                edge(zone, node, squares(1 - 2 * load), None);
            }
        }
        for zone in self.names.len()..whole {
            let load = self.load(zone);
            let change = |to| PlacementCost {
                overload: self.overload(to) - self.overload(load),
                ..PlacementCost::default()
            };
            edge(zone, whole, change(load + 1), None);
            if load > 0 {
                edge(whole, zone, change(load - 1), None);
            }
        }
        edges
    }

    /// A cycle of negative cost, by the method of Bellman and Ford from all vertices at once.
    fn improvement(&self) -> Option<Vec<LoadEdge>> {
        let edges = self.edges();
        let vertices = self.loads.len() + 1;
        let mut distances = vec![PlacementCost::default(); vertices];
        let mut reached_by: Vec<Option<LoadEdge>> = vec![None; vertices];
        // Without such a cycle no shortest way has more edges than there are vertices.
        for _ in 0..=vertices {
            let mut changed = false;
            for edge in &edges {
                let from = distances.get(edge.from).copied().unwrap_or_default();
                let (Some(distance), Some(by)) =
                    (distances.get_mut(edge.to), reached_by.get_mut(edge.to))
                else {
                    continue;
                };
                let along = from + edge.cost;
                if along < *distance {
                    *distance = along;
                    *by = Some(*edge);
                    changed = true;
                }
            }
            if !changed {
                return None;
            }
            // Every cycle of these edges has a negative cost.
            if let Some(cycle) = cycle_in(&reached_by) {
                return Some(cycle);
            }
        }
        None
    }

    fn carry_out(&mut self, cycle: &[LoadEdge]) {
        for edge in cycle {
            if let Some(choice) = edge.shard.and_then(|shard| self.shards.get_mut(shard)) {
                choice.at = edge.to;
            }
        }
        self.count();
    }
}

/// The edges of a cycle, if following them backwards leads into one.
fn cycle_in(reached_by: &[Option<LoadEdge>]) -> Option<Vec<LoadEdge>> {
    let before = |vertex: Vertex| reached_by.get(vertex).copied().flatten();
    // By which start each vertex was seen first.
    let mut seen: Vec<Option<Vertex>> = vec![None; reached_by.len()];
    for start in 0..reached_by.len() {
        let mut vertex = start;
        loop {
            match seen.get_mut(vertex) {
                Some(mark) if mark.is_none() => *mark = Some(start),
                Some(mark) if *mark == Some(start) => return Some(around(vertex, before)),
                Some(_) | None => break,
            }
            match before(vertex) {
                Some(edge) => vertex = edge.from,
                None => break,
            }
        }
    }
    None
}

/// The cycle through a vertex that is on one.
fn around(vertex: Vertex, before: impl Fn(Vertex) -> Option<LoadEdge>) -> Vec<LoadEdge> {
    let mut cycle = Vec::new();
    let mut at = vertex;
    while let Some(edge) = before(at) {
        cycle.push(edge);
        at = edge.from;
        if at == vertex {
            break;
        }
    }
    cycle
}
