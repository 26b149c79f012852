//! The diff against a model of the kernel: carrying out its steps leads where it says, in an order the kernel
//! accepts, whatever two states it is given.
#![allow(clippy::unwrap_used, reason = "a failure here is a failure of the test")]

mod model;

use model::Model;
use netstate::nft::{self, Chain, Family, Field, IpVersion, KeyType, Rule, Set, Statement, Table};
use netstate::{Foreign, ForeignLink, Observed, SecretKey, State, Step, diff, plan};
use proptest::prelude::*;

/// What a sysctl was before is not ours to know, so only those that are wanted are read.
fn read_for(have: &State, want: &State) -> State {
    let mut read = have.clone();
    read.sysctls.retain(|path, _| want.sysctls.contains_key(path));
    read
}

fn walk(have: &State, want: &State) -> State {
    let mut model = Model::new(read_for(have, want));
    for step in diff(&read_for(have, want), want) {
        model.carry_out(&step);
    }
    model.state
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn carrying_out_the_diff_leads_to_what_is_wanted(have in model::state(), want in model::state()) {
        prop_assert_eq!(walk(&have, &want).to_string(), want.to_string());
    }

    #[test]
    fn there_is_nothing_to_do_between_equals(state in model::state()) {
        prop_assert_eq!(diff(&state, &state), vec![]);
        prop_assert_eq!(diff(&State::default(), &state), diff(&State::default(), &state.clone()));
    }

    #[test]
    fn cleaning_up_is_wanting_nothing(state in model::state()) {
        let mut left = walk(&state, &State::default());
        left.sysctls.clear();
        prop_assert!(left.is_empty(), "{}", left);
    }

    #[test]
    fn random_walks_between_states_end_where_they_should(states in prop::collection::vec(model::state(), 2..6)) {
        let mut have = State::default();
        for want in &states {
            have = walk(&have, want);
            prop_assert_eq!(have.to_string(), want.to_string());
        }
    }

    #[test]
    fn no_step_touches_a_foreign_link_or_what_would_be_on_it(have in model::state(), want in model::state()) {
        let taken = model::links()[0];
        let mut ours = read_for(&have, &want);
        ours.links.remove(&taken);
        ours.addresses.retain(|address| address.link != taken);
        ours.wireguards.remove(&taken);
        ours.wireguard_peers.retain(|key, _| key.link != taken);
        ours.neighbours.retain(|key, _| key.link != taken);
        ours.fdb.retain(|key, _| key.link != taken);
        ours.routes.retain(|_, target| target.link != Some(taken));
        let foreign = Foreign { links: vec![ForeignLink { name: taken, kind: "dummy".into() }], routes: vec![] };
        let plan = plan(&Observed { state: ours, foreign }, &want);
        prop_assert_eq!(plan.conflicts.len(), usize::from(want.links.contains_key(&taken)));
        if want.links.contains_key(&taken) {
            for step in &plan.steps {
                let text = step.to_string();
                prop_assert!(!text.contains(taken.as_str()), "{}", text);
            }
        }
    }
}

#[test]
fn a_peer_that_moves_is_never_without_an_entry() {
    let mut have = model::peer("fairlead0", 1, 0xa, "192.0.2.1");
    let want = model::peer("fairlead0", 1, 0xb, "192.0.2.9");
    let steps: Vec<String> = diff(&have, &want).iter().map(Step::to_string).collect();
    assert_eq!(
        steps,
        [
            "+ fdb 02:00:00:00:00:0b dst 192.0.2.9 dev fairlead0",
            "~ neighbour 10.244.1.0 lladdr 02:00:00:00:00:0b dev fairlead0 (was 02:00:00:00:00:0a)",
            "- fdb 02:00:00:00:00:0a dst 192.0.2.1 dev fairlead0",
        ]
    );
    have = model::peer("fairlead0", 1, 0xb, "192.0.2.1");
    let steps: Vec<String> = diff(&have, &want).iter().map(Step::to_string).collect();
    assert_eq!(steps, ["~ fdb 02:00:00:00:00:0b dst 192.0.2.9 dev fairlead0 (was 192.0.2.1)"]);
}

#[test]
fn of_wireguards_peers_only_those_that_differ_are_touched() {
    let have = model::encrypted(&[(1, "192.0.2.1:51820"), (2, "192.0.2.2:51820"), (3, "192.0.2.3:51820")]);
    let want = model::encrypted(&[(1, "192.0.2.1:51820"), (2, "192.0.2.9:51820"), (4, "192.0.2.4:51820")]);
    let steps: Vec<String> = diff(&have, &want).iter().map(Step::to_string).collect();
    assert_eq!(
        steps,
        [
            "~ peer AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI= endpoint 192.0.2.9:51820 allowed-ips 10.244.2.0/24 dev \
             fairlead0 (was endpoint 192.0.2.2:51820 allowed-ips 10.244.2.0/24)",
            "+ peer BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ= endpoint 192.0.2.4:51820 allowed-ips 10.244.4.0/24 dev \
             fairlead0",
            "- peer AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM= dev fairlead0",
        ]
    );
    // With the device go its peers: no step of their own.
    let steps: Vec<String> = diff(&have, &State::default()).iter().map(Step::to_string).collect();
    assert_eq!(steps, ["- link fairlead0"]);
}

#[test]
fn a_private_key_is_in_no_text_of_a_state_or_a_step() {
    let have = model::encrypted(&[]);
    let mut want = have.clone();
    let secret = SecretKey::new([0xab; 32]);
    want.wireguards.values_mut().for_each(|device| device.private_key = secret);
    let steps = diff(&have, &want);
    assert_eq!(
        steps.iter().map(Step::to_string).collect::<Vec<_>>(),
        ["~ wireguard fairlead0 private-key (hidden) listen-port 51820 (another key)"]
    );
    for text in [format!("{want}"), format!("{want:?}"), format!("{steps:?}")] {
        // As text, as numbers, or in base64.
        assert!(
            !["abab", "171, 171", "q6ur"].iter().any(|part| text.to_lowercase().contains(part)),
            "{text}"
        );
    }
}

#[test]
fn sets_that_most_rules_name_are_made_first() {
    let table = ["a", "b", "c"]
        .into_iter()
        .fold(Table::new(Family::Inet, "t"), |table, name| table.with_set(Set::new(name, [KeyType::Ipv4])));
    let rule = |set: &str| Rule::new([Statement::in_set([Field::Source(IpVersion::V4)], set)]);
    let chain = Chain::regular("x").with_rule(rule("c")).with_rule(rule("b")).with_rule(rule("c"));
    let steps = nft::diff(None, Some(&table.with_chain(chain)));
    let sets: Vec<String> =
        steps.iter().map(ToString::to_string).filter(|step| step.contains(" set ")).collect();
    assert_eq!(sets.iter().map(|step| step.split(' ').nth(4).unwrap()).collect::<Vec<_>>(), ["c", "b", "a"]);
}
