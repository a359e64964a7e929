//! Plans by lot, as many as one has time for: `RIP_TEST_SEEDS=1..200 cargo test --test faults -- --ignored by_lot`.

use crate::can_inject;
use crate::workload::{Expect, struck_by};

/// Numbers from a seed (xorshift).
struct Lots(u64);

impl Lots {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What a call may meet that nobody may see.
const UNSEEN: [(&str, &[&str]); 13] = [
    ("client.read", &["EINTR", "EAGAIN", "short", "one"]),
    ("client.write", &["EINTR", "EAGAIN", "short", "one"]),
    ("worker.read", &["EINTR", "EAGAIN", "short", "one"]),
    ("worker.write", &["EINTR", "EAGAIN", "short", "one"]),
    ("control.read", &["EINTR", "EAGAIN", "short", "one"]),
    ("control.write", &["EINTR", "EAGAIN", "short", "one"]),
    ("spool.write", &["EINTR", "short", "one"]),
    ("spool.send", &["EINTR", "EINVAL"]),
    ("stdout.write", &["EINTR", "EAGAIN", "short", "one"]),
    ("stderr.write", &["EINTR", "EAGAIN", "short", "one"]),
    ("client.accept", &["EINTR", "ECONNABORTED", "EAGAIN"]),
    ("kernel.read", &["EINTR"]),
    ("any.wait", &["EINTR"]),
];

/// What may cost a request, but no other.
const SEEN: [(&str, &[&str]); 12] = [
    ("client.read", &["ECONNRESET", "ETIMEDOUT"]),
    ("client.write", &["EPIPE", "ECONNRESET"]),
    ("worker.read", &["ECONNRESET"]),
    ("worker.write", &["EPIPE", "ECONNRESET"]),
    ("spool.write", &["ENOSPC", "EIO"]),
    ("spool.open", &["ENOSPC", "EIO", "EMFILE"]),
    ("spool.send", &["EIO"]),
    ("spool.read", &["EIO"]),
    ("worker.connect", &["EAGAIN", "EACCES"]),
    ("client.accept", &["EMFILE", "ENOMEM", "EPERM"]),
    ("client.watch", &["ENOMEM", "ENOSPC"]),
    ("worker.watch", &["ENOMEM", "ENOSPC"]),
];

fn plan(seed: u64, expect: Expect) -> String {
    // The first numbers of small seeds are all alike.
    let mut lots = Lots(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut words = vec![format!("seed={seed}")];
    for (call, whats) in UNSEEN {
        for what in whats {
            if lots.below(2) == 0 {
                words.push(format!("{call}={what}~{}", 2 + lots.below(9)));
            }
        }
    }
    for (call, whats) in SEEN.iter().filter(|_| expect == Expect::RightOrRefused) {
        for what in *whats {
            if lots.below(4) == 0 {
                words.push(format!("{call}={what}~{}", 5 + lots.below(60)));
            }
        }
    }
    words.join(" ")
}

#[test]
#[ignore = "as many plans as one has time for; RIP_TEST_SEEDS says which"]
fn plans_by_lot_mix_nothing_up() {
    if !can_inject("plans_by_lot_mix_nothing_up") {
        return;
    }
    let seeds = std::env::var("RIP_TEST_SEEDS").unwrap_or_else(|_| "1..20".to_owned());
    let (first, last) = seeds.split_once("..").expect("first..last");
    let (first, last): (u64, u64) = (first.parse().expect("a number"), last.parse().expect("a number"));
    for seed in first..last {
        for expect in [Expect::Right, Expect::RightOrRefused] {
            let plan = plan(seed, expect);
            eprintln!("{expect:?}: {plan}");
            let (outcome, hits) = struck_by(&plan, expect);
            let (right, refused, lost) = (outcome.right.len(), outcome.refused.len(), outcome.lost.len());
            eprintln!("  {hits} faults: {right} right, {refused} refused, {lost} lost");
        }
    }
}
