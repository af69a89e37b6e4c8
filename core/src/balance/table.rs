//! Tables that lead a hash to its owner, and on to the next when the owner cannot.

use super::hash::{mix, of};
use super::rules;

/// Where hashes lead in one group. Numbers are those of the members it was built from.
#[derive(Clone, Debug)]
pub(super) enum Table {
    /// Places on a ring, ascending, each with its owner.
    Ring(Vec<(u64, u32)>),
    /// Maglev: an owner for every place.
    Maglev(Vec<u32>),
}

impl Table {
    /// Builds the table for members given by the hash of their name, and their weight.
    pub(super) fn build(kind: rules::Table, members: &[(u64, u16)]) -> Self {
        match kind {
            rules::Table::Ring { min, max } => Self::Ring(ring(members, min, max)),
            rules::Table::Maglev => Self::Maglev(maglev(members)),
        }
    }

    /// The owner of `hash`, and after it those who would be if it were gone; some come repeatedly.
    pub(super) fn walk(&self, hash: u64) -> impl Iterator<Item = usize> + '_ {
        let (ring, places): (&[(u64, u32)], &[u32]) = match self {
            Self::Ring(ring) => (ring, &[]),
            Self::Maglev(places) => (&[], places),
        };
        let start = ring.partition_point(|(place, _)| *place < hash);
        let on_ring = ring[start..].iter().chain(&ring[..start]).map(|(_, owner)| *owner as usize);
        let start = (hash % (places.len().max(1) as u64)) as usize;
        let in_table = places[start..].iter().chain(&places[..start]).map(|owner| *owner as usize);
        on_ring.chain(in_table)
    }
}

/// Each member has places by its weight. How many for a weight of one is a power of two, so that
/// others keep theirs while members come and go.
fn ring(members: &[(u64, u16)], min: u64, max: u64) -> Vec<(u64, u32)> {
    let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let total = total.max(1);
    let mut each = min.div_ceil(total).next_power_of_two();
    while each > 1 && each.saturating_mul(total) > max {
        each /= 2;
    }
    // Weights that do not fit even so are scaled down; everyone keeps one place.
    let scale = (each * total).div_ceil(max.max(members.len() as u64)).max(1);
    let mut places = Vec::new();
    for (member, (name, weight)) in members.iter().enumerate() {
        let count = (u64::from(*weight) * each / scale).max(1);
        let place = |n: u64| (of(*name, &n.to_le_bytes()), member as u32);
        places.extend((0..count).map(place));
    }
    places.sort_unstable();
    places
}

/// Maglev's population, with weights: members take turns, and one of twice the weight has twice the
/// turns. Source: Eisenbud et al., NSDI 2016, section 3.4.
fn maglev(members: &[(u64, u16)]) -> Vec<u32> {
    struct Row {
        next: u64,
        skip: u64,
        weight: u64,
        turn_at: u64,
    }
    if members.is_empty() {
        return Vec::new();
    }
    let row = |(name, weight): &(u64, u16)| Row {
        next: mix(*name) % MAGLEV_PLACES,
        skip: mix(name.rotate_left(32)) % (MAGLEV_PLACES - 1) + 1,
        weight: u64::from(*weight).max(1),
        turn_at: 0,
    };
    let mut rows: Vec<Row> = members.iter().map(row).collect();
    let greatest = rows.iter().map(|row| row.weight).max().unwrap_or(1);
    let mut places = vec![u32::MAX; MAGLEV_PLACES as usize];
    let mut left = places.len();
    for turn in 1.. {
        for (member, row) in rows.iter_mut().enumerate() {
            if turn * row.weight < row.turn_at + greatest {
                continue;
            }
            row.turn_at += greatest;
            while places[row.next as usize] != u32::MAX {
                row.next = (row.next + row.skip) % MAGLEV_PLACES;
            }
            places[row.next as usize] = member as u32;
            left -= 1;
            if left == 0 {
                return places;
            }
        }
    }
    places
}

/// A prime, and Envoy's default.
const MAGLEV_PLACES: u64 = 65_537;

#[cfg(test)]
mod tests {
    use super::*;

    const RING: rules::Table = rules::Table::Ring { min: 1_024, max: 8 * 1024 * 1024 };

    fn members(weights: &[u16]) -> Vec<(u64, u16)> {
        weights.iter().enumerate().map(|(n, weight)| (of(0, &[n as u8]), *weight)).collect()
    }

    fn owner(table: &Table, hash: u64) -> usize {
        table.walk(hash).next().expect("a member")
    }

    #[test]
    fn shares_follow_weights() {
        for (kind, slack) in [(RING, 30), (rules::Table::Maglev, 5)] {
            let weights = [1, 1, 2, 4, 1, 1];
            let table = Table::build(kind, &members(&weights));
            let mut counts = [0_u64; 6];
            (0..100_000).for_each(|n| counts[owner(&table, mix(n))] += 1);
            for (count, weight) in counts.iter().zip(weights) {
                let fair = 10_000 * u64::from(weight);
                let off = count.abs_diff(fair) * 100 / fair;
                assert!(off <= slack, "{kind:?}: {counts:?}, {off} % off");
            }
        }
    }

    #[test]
    fn who_leaves_takes_only_its_own_keys_along() {
        for (kind, most_moved_percent) in [(RING, 0), (rules::Table::Maglev, 4)] {
            let before = members(&[1; 10]);
            let (old, mut after) = (Table::build(kind, &before), before.clone());
            after.remove(3);
            let new = Table::build(kind, &after);
            let mut moved = 0;
            let mut stayed = 0;
            for n in 0..100_000 {
                let hash = mix(n);
                let (was, is) = (before[owner(&old, hash)], after[owner(&new, hash)]);
                match was == before[3] {
                    true => continue,
                    false if was == is => stayed += 1,
                    false => moved += 1,
                }
            }
            let percent = moved * 100 / (moved + stayed);
            assert!(percent <= most_moved_percent, "{kind:?}: {moved} of {stayed} moved");
        }
    }

    #[test]
    fn a_walk_meets_everyone() {
        for kind in [RING, rules::Table::Maglev, rules::Table::Ring { min: 1, max: 1 }] {
            let table = Table::build(kind, &members(&[1, 9, 1, 3]));
            let met: std::collections::BTreeSet<_> = table.walk(mix(7)).collect();
            assert_eq!(met.len(), 4, "{kind:?}");
        }
        for kind in [RING, rules::Table::Maglev] {
            assert_eq!(Table::build(kind, &[]).walk(1).next(), None);
        }
    }

    #[test]
    fn a_ring_keeps_its_bounds() {
        for (weights, min, max) in
            [(vec![1; 3], 1_024, 4_096), (vec![65_535; 40], 1_024, 10_000), (vec![1; 500], 1, 100)]
        {
            let places = ring(&members(&weights), min, max).len() as u64;
            let most = max.max(weights.len() as u64);
            assert!(places <= most && places >= min.min(most / 2), "{places} places");
        }
    }
}
