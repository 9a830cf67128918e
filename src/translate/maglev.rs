//! Chooses the size of Envoy's Maglev table, so that the shares of requests follow the weights.
//!
//! It refuses to know hosts; weights are all it needs. Envoy fills the table in rounds: in round `r`
//! a host takes one entry if it has at most `r · weight / greatest weight` so far, and the hash
//! decides only *which* entry. After `r` full rounds a host therefore holds
//! `min(r, ⌊r · weight / greatest⌋ + 1)` entries. The last round ends when the table is full; whom
//! it still serves depends on the order of the hosts in Envoy, so the error is that of the worst
//! order. Invariant: the choice depends on the multiset of weights alone and costs no walk of the
//! table. Source: Envoy's `maglev_lb.cc`; Eisenbud et al., "Maglev", NSDI 2016, section 3.4.

/// The number of entries of a Maglev table: one of a few primes, because every new size makes each
/// sidecar rebuild the cluster and drain its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TableSize(u32);

/// The greatest error of the shares: 3 ‰ of the requests go elsewhere than the weights say.
const ERROR_NUMERATOR: u128 = 3;
const ERROR_DENOMINATOR: u128 = 1_000;

impl TableSize {
    /// About 0.02, 0.12, 0.35 and 1.3 MB in a sidecar.
    pub const ALL: [Self; 4] = [Self(4_093), Self(65_537), Self(262_139), Self(1_048_573)];
    const SMALLEST: Self = Self::ALL[0];
    const LARGEST: Self = Self::ALL[3];

    pub const fn get(self) -> u32 {
        self.0
    }

    /// The smallest size from this one up whose shares fit the weights, else the largest one.
    /// `weights` are distinct and over 0, in ascending order, each with how many hosts have it.
    pub fn grown_for(self, weights: impl IntoIterator<Item = (u32, u64)>) -> Self {
        if self == Self::LARGEST {
            return self;
        }
        let shares = Shares::new(weights);
        let candidates = Self::ALL.into_iter().filter(|size| *size >= self);
        candidates
            .into_iter()
            .find(|size| shares.fit(*size))
            .unwrap_or(Self::LARGEST)
    }
}

impl Default for TableSize {
    fn default() -> Self {
        Self::SMALLEST
    }
}

/// Weights, with how many hosts have each.
#[derive(Debug)]
struct Shares {
    groups: Vec<Group>,
    greatest: u64,
    total: u128,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    weight: u64,
    hosts: u64,
}

impl Shares {
    fn new(weights: impl IntoIterator<Item = (u32, u64)>) -> Self {
        let group = |(weight, hosts)| Group {
            weight: u64::from(weight),
            hosts,
        };
        let groups: Vec<Group> = weights.into_iter().map(group).collect();
        Self {
            greatest: groups.last().map_or(1, |group| group.weight),
            total: groups
                .iter()
                .map(|group| u128::from(group.weight * group.hosts))
                .sum(),
            groups,
        }
    }

    fn fit(&self, size: TableSize) -> bool {
        let (error, whole) = self.error(u64::from(size.0));
        error * ERROR_DENOMINATOR <= ERROR_NUMERATOR * whole
    }

    /// The total variation between the shares that a table of `size` gives and those of the weights,
    /// as a fraction: the sum of all surpluses over `size · total weight`.
    fn error(&self, size: u64) -> (u128, u128) {
        if self.groups.is_empty() {
            return (0, 1);
        }
        let rounds = self.full_rounds(size);
        let mut left = size - self.filled(rounds);
        let mut error = 0;
        let mut surpluses = Vec::new();
        for group in &self.groups {
            let entries = self.entries(*group, rounds);
            let surplus = self.surplus(*group, entries, size);
            error += surplus * u128::from(group.hosts);
            if self.entries(*group, rounds + 1) > entries {
                let more = self.surplus(*group, entries + 1, size) - surplus;
                surpluses.push((more, group.hosts));
            }
        }
        surpluses.sort_unstable_by(|a, b| b.cmp(a));
        for (more, hosts) in surpluses {
            let served = hosts.min(left);
            error += more * u128::from(served);
            left -= served;
        }
        (error, u128::from(size) * self.total)
    }

    /// How many rounds end before a table of `size` is full. Each gives the heaviest host an entry,
    /// so that there are fewer than `size`.
    fn full_rounds(&self, size: u64) -> u64 {
        let (mut low, mut high) = (0, size);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.filled(middle) < size {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    fn filled(&self, rounds: u64) -> u64 {
        self.groups
            .iter()
            .map(|group| group.hosts * self.entries(*group, rounds))
            .sum()
    }

    /// What each host of the group holds after so many rounds.
    fn entries(&self, group: Group, rounds: u64) -> u64 {
        rounds.min(rounds * group.weight / self.greatest + 1)
    }

    /// What a host with so many entries has above its share, in units of `1 / (size · total)`.
    fn surplus(&self, group: Group, entries: u64, size: u64) -> u128 {
        (u128::from(entries) * self.total).saturating_sub(u128::from(group.weight * size))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counted(weights: &[u32]) -> std::collections::BTreeMap<u32, u64> {
        let mut counted = std::collections::BTreeMap::new();
        for weight in weights.iter().filter(|weight| **weight > 0) {
            *counted.entry(*weight).or_default() += 1;
        }
        counted
    }

    /// Fills a table as Envoy does, turn by turn, and returns what each host holds.
    fn simulate(weights: &[u32], size: u64) -> Vec<u64> {
        let greatest = u64::from(*weights.iter().max().unwrap());
        let mut targets = vec![0; weights.len()];
        let mut entries = vec![0; weights.len()];
        let mut filled = 0;
        for round in 1.. {
            for (host, weight) in weights.iter().enumerate() {
                if filled == size {
                    return entries;
                }
                if round * u64::from(*weight) < targets[host] {
                    continue;
                }
                targets[host] += greatest;
                entries[host] += 1;
                filled += 1;
            }
        }
        unreachable!()
    }

    #[allow(clippy::cast_precision_loss)]
    fn simulated_error(weights: &[u32], size: u64) -> f64 {
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        let entries = simulate(weights, size);
        let surplus = |(weight, entries): (&u32, &u64)| {
            (*entries as f64 / size as f64 - f64::from(*weight) / total as f64).max(0.0)
        };
        weights.iter().zip(&entries).map(surplus).sum()
    }

    #[allow(clippy::cast_precision_loss)]
    fn error(weights: &[u32], size: u64) -> f64 {
        let (error, whole) = Shares::new(counted(weights)).error(size);
        error as f64 / whole as f64
    }

    fn permutations(weights: &[u32]) -> Vec<Vec<u32>> {
        if weights.is_empty() {
            return vec![vec![]];
        }
        let mut all = Vec::new();
        for first in 0..weights.len() {
            let mut rest = weights.to_vec();
            let head = rest.remove(first);
            all.extend(permutations(&rest).into_iter().map(|mut tail| {
                tail.insert(0, head);
                tail
            }));
        }
        all
    }

    proptest! {
        #[test]
        fn the_error_is_that_of_the_worst_order_in_a_simulation(
            weights in prop::collection::vec(prop_oneof![1u32..4, 1u32..=10_000], 1..6),
            size in prop::sample::select(&[2u64, 3, 7, 13, 31, 101, 997][..]),
        ) {
            let worst = permutations(&weights)
                .iter()
                .map(|order| simulated_error(order, size))
                .fold(0.0, f64::max);
            let computed = error(&weights, size);
            prop_assert!((computed - worst).abs() < 1e-9, "{computed} against {worst}");
        }

        #[test]
        fn no_simulation_of_many_hosts_errs_more(
            weights in prop::collection::vec(prop_oneof![1u32..4, 1u32..=10_000], 1..300),
            size in prop::sample::select(&[101u64, 4_093][..]),
        ) {
            let (simulated, computed) = (simulated_error(&weights, size), error(&weights, size));
            prop_assert!(simulated <= computed + 1e-9, "{simulated} over {computed}");
        }
    }

    #[test]
    fn every_size_is_a_prime_that_envoy_takes() {
        for TableSize(size) in TableSize::ALL {
            assert!((2..=size.isqrt()).all(|divisor| size % divisor != 0));
            assert!(size <= 5_000_011);
        }
    }

    #[test]
    fn the_measured_errors_come_out() {
        let hundreds: Vec<u32> = (0..1_000).map(|host| host % 100 + 1).collect();
        for (size, percent) in [
            (4_093, 4.5),
            (65_537, 0.3),
            (262_139, 0.07),
            (1_048_573, 0.02),
        ] {
            let computed = error(&hundreds, size) * 100.0;
            assert!(
                (computed / percent - 1.0).abs() < 0.25,
                "{size}: {computed}"
            );
        }
        assert!(error(&[1, 2, 3, 10], 4_093) < 0.001);
    }

    #[test]
    fn few_hosts_take_the_smallest_table_and_many_a_larger_one() {
        let size = |weights: &[u32]| TableSize::default().grown_for(counted(weights)).get();
        assert_eq!(size(&[]), 4_093);
        assert_eq!(size(&[0, 0]), 4_093);
        assert_eq!(size(&[100]), 4_093);
        assert_eq!(size(&[1, 2, 3, 10]), 4_093);
        assert_eq!(size(&[100; 150]), 65_537);
        assert_eq!(size(&vec![100; 10_000]), 1_048_573);
        assert_eq!(size(&vec![1; 100_000]), 1_048_573, "none fits: the largest");
    }

    #[test]
    fn more_hosts_than_entries_are_no_problem() {
        assert!(error(&vec![7; 5_000], 4_093) > 0.1);
        assert!(error(&vec![10_000; 2_000_000], 1_048_573) > 0.1);
    }

    #[test]
    fn a_table_never_shrinks() {
        for size in TableSize::ALL {
            assert_eq!(size.grown_for([(100, 1)]), size);
            assert!(size.grown_for([(100, 10_000)]) >= size);
        }
    }
}
