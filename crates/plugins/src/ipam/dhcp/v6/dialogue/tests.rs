//! The talk with servers on a virtual clock: every question, its answers, its silence, and answers of others.

use super::*;

const OURS: &[u8] = &[0, 4, 1, 2, 3];
const SERVER: &[u8] = &[0, 1, 9];
const OTHER: &[u8] = &[0, 1, 8];
const ID: u32 = 77;
const ADDRESS: &str = "2001:db8::5";
const SECOND: &str = "2001:db8::6";

/// A client, a clock, and what the client has said last.
struct Scene {
    dialogue: Dialogue,
    now: Moment,
    /// Every message sent, with its time.
    sent: Vec<(Moment, Message)>,
    /// Every other action.
    done: Vec<Action>,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let dialogue = Dialogue::new(OURS.to_vec(), ID, Duration::from_secs(120), Chance::new(seed));
        Self { dialogue, now: Duration::from_secs(5000), sent: Vec::new(), done: Vec::new() }
    }

    fn started() -> Self {
        let mut scene = Self::new(1);
        let actions = scene.dialogue.start(scene.now, None);
        scene.note(actions);
        scene
    }

    /// Holding [`ADDRESS`] of [`SERVER`], preferred for 100 s, valid for 200, with T1 50 and T2 80.
    fn bound() -> Self {
        let mut scene = Self::started();
        scene.hear(&scene.rapid(&granted(&[(ADDRESS, 100, 200)])));
        assert_eq!(scene.take_done(), [Action::Bound]);
        scene
    }

    fn note(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(Destination::Servers, bytes) => {
                    self.sent.push((self.now, Message::decode(&bytes).unwrap()));
                }
                other => self.done.push(other),
            }
        }
    }

    fn take_done(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }

    fn last(&self) -> &Message {
        &self.sent.last().unwrap().1
    }

    fn said(&self) -> Vec<&'static str> {
        self.sent.iter().map(|(_, message)| message.kind.name()).collect()
    }

    fn hear(&mut self, message: &Message) {
        self.hear_bytes(&message.encode());
    }

    fn hear_bytes(&mut self, bytes: &[u8]) {
        let actions = self.dialogue.received(self.now, bytes);
        self.note(actions);
    }

    /// Lets the clock run to the moment that the client waits for.
    fn wait(&mut self) -> Duration {
        let wake = self.dialogue.wake().expect("the client waits for something");
        let waited = wake.saturating_sub(self.now);
        self.now = self.now.max(wake);
        let actions = self.dialogue.due(self.now);
        self.note(actions);
        waited
    }

    /// Lets the clock run until the client has said something of this kind.
    fn wait_for(&mut self, kind: Kind) {
        for _ in 0..100 {
            if self.last().kind == kind {
                return;
            }
            self.wait();
        }
        panic!("no {} came: {:?}", kind.name(), self.said());
    }

    /// An answer to the last message.
    fn answer(&self, kind: Kind, association: &Association) -> Message {
        Message {
            client: Some(OURS.to_vec()),
            server: Some(SERVER.to_vec()),
            associations: vec![association.clone()],
            ..Message::new(kind, self.last().transaction)
        }
    }

    fn rapid(&self, association: &Association) -> Message {
        Message { rapid_commit: true, ..self.answer(Kind::Reply, association) }
    }

    fn addresses(&self) -> Vec<String> {
        let lease = self.dialogue.lease.as_ref();
        lease.map(Lease::plain_addresses).unwrap_or_default().iter().map(Ipv6Addr::to_string).collect()
    }
}

fn granted(addresses: &[(&str, u32, u32)]) -> Association {
    let leased = |(address, preferred, valid): &(&str, u32, u32)| Leased {
        address: address.parse().unwrap(),
        preferred: *preferred,
        valid: *valid,
        status: None,
    };
    Association { id: ID, t1: 0, t2: 0, addresses: addresses.iter().map(leased).collect(), status: None }
}

fn refusal(code: u16) -> Association {
    Association { id: ID, status: Some(Status { code, text: "sorry".into() }), ..Association::default() }
}

fn one() -> Association {
    granted(&[(ADDRESS, 100, 200)])
}

fn unusable(actions: &[Action]) -> Vec<&str> {
    let text = |action: &Action| match action {
        Action::Unusable(text) => text.clone().leak() as &str,
        other => panic!("{other:?}"),
    };
    actions.iter().map(text).collect()
}

#[test]
fn the_first_solicit_says_who_we_are_and_what_we_want() {
    let scene = Scene::started();
    let message = scene.last();
    assert_eq!((message.kind, message.rapid_commit), (Kind::Solicit, true));
    assert_eq!(message.client.as_deref(), Some(OURS));
    assert_eq!((message.server.as_ref(), message.elapsed), (None, Some(0)));
    assert_eq!(message.requested, [DNS_SERVERS, DOMAIN_LIST, SOL_MAX_RT]);
    assert_eq!(message.associations, [Association { id: ID, ..Association::default() }]);
}

#[test]
fn a_rapid_reply_is_a_lease_in_two_messages() {
    let mut scene = Scene::started();
    let reply = Message {
        name_servers: vec!["2001:db8::53".parse().unwrap()],
        search: vec!["example.org".into()],
        ..scene.rapid(&one())
    };
    scene.hear(&reply);
    assert_eq!(scene.take_done(), [Action::Bound]);
    assert_eq!((scene.said(), scene.addresses()), (vec!["SOLICIT"], vec![ADDRESS.to_owned()]));
    let lease = scene.dialogue.lease.clone().unwrap();
    assert_eq!((lease.name_servers, lease.search), (reply.name_servers, reply.search));
    assert!(!scene.dialogue.listens());
}

#[test]
fn a_reply_to_solicit_that_is_not_rapid_is_no_lease() {
    let mut scene = Scene::started();
    scene.hear(&scene.answer(Kind::Reply, &one()));
    assert_eq!((scene.take_done(), scene.addresses()), (vec![], vec![]));
}

#[test]
fn the_best_offer_of_the_first_pause_is_taken() {
    let mut scene = Scene::started();
    let offer = |scene: &Scene, server: &[u8], preference| Message {
        server: Some(server.to_vec()),
        preference,
        ..scene.answer(Kind::Advertise, &one())
    };
    scene.hear(&offer(&scene, &[1], None));
    scene.hear(&offer(&scene, &[2], Some(7)));
    scene.hear(&offer(&scene, &[3], Some(7)));
    scene.hear(&offer(&scene, &[4], Some(3)));
    assert_eq!(scene.said(), ["SOLICIT"], "others may still answer");
    scene.wait();
    let request = scene.last();
    assert_eq!((request.kind, request.server.as_deref()), (Kind::Request, Some(&[2][..])));
    assert_eq!(request.associations[0].addresses, [Leased::wish(ADDRESS.parse().unwrap())]);
    assert_ne!(request.transaction, scene.sent[0].1.transaction);
    scene.hear(&offer(&scene, &[2], None));
    assert_eq!(scene.addresses(), Vec::<String>::new(), "an ADVERTISE is no answer to REQUEST");
    scene.hear(&Message { server: Some(vec![2]), ..scene.answer(Kind::Reply, &one()) });
    assert_eq!(scene.addresses(), [ADDRESS]);
}

#[test]
fn an_offer_that_wants_to_be_taken_is_taken_at_once_and_so_is_one_that_comes_late() {
    let mut scene = Scene::started();
    scene.hear(&Message { preference: Some(255), ..scene.answer(Kind::Advertise, &one()) });
    assert_eq!(scene.said(), ["SOLICIT", "REQUEST"]);
    let mut scene = Scene::started();
    scene.wait();
    scene.hear(&scene.answer(Kind::Advertise, &one()));
    assert_eq!(scene.said(), ["SOLICIT", "SOLICIT", "REQUEST"]);
}

#[test]
fn nobody_there_is_asked_again_with_longer_pauses_and_the_same_number() {
    for seed in 0..50 {
        let mut scene = Scene::new(seed);
        let actions = scene.dialogue.start(scene.now, None);
        scene.note(actions);
        let pauses: Vec<f64> = (0..12).map(|_| scene.wait().as_secs_f64()).collect();
        assert!((1.0..=1.1).contains(&pauses[0]), "{pauses:?}");
        assert!(pauses.windows(2).all(|pair| pair[1] > pair[0] * 1.89 || pair[1] >= 108.0), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= 132.0), "{pauses:?}");
        assert!(scene.sent.iter().all(|(_, message)| message.transaction == scene.sent[0].1.transaction));
        let elapsed: Vec<u16> = scene.sent.iter().map(|(_, message)| message.elapsed.unwrap()).collect();
        assert!(elapsed.windows(2).all(|pair| pair[0] < pair[1]), "{elapsed:?}");
    }
}

#[test]
fn servers_without_addresses_are_told_about_after_the_pause_unless_another_has_some() {
    let mut scene = Scene::started();
    let whole = Message {
        status: Some(Status { code: Status::NO_ADDRESSES, text: String::new() }),
        ..scene.answer(Kind::Advertise, &one())
    };
    scene.hear(&whole);
    scene.hear(&scene.answer(Kind::Advertise, &refusal(Status::NO_ADDRESSES)));
    assert_eq!(scene.take_done(), []);
    let mut better =
        Scene { dialogue: scene.dialogue.clone(), now: scene.now, sent: scene.sent.clone(), done: vec![] };
    scene.wait();
    let done = scene.take_done();
    assert_eq!(unusable(&done), ["the server says: no addresses are left (NoAddrsAvail): \"sorry\""]);
    assert_eq!(scene.said(), ["SOLICIT", "SOLICIT"]);
    better.hear(&better.answer(Kind::Advertise, &one()));
    better.wait();
    assert_eq!((better.take_done(), better.said()), (vec![], vec!["SOLICIT", "REQUEST"]));
}

#[test]
fn the_server_sets_the_longest_pause_within_reason() {
    for (seconds, expected) in [(60, 60.0), (86_400, 86_400.0), (59, 120.0), (86_401, 120.0)] {
        let mut scene = Scene::started();
        scene.hear(&Message {
            longest_solicit: Some(seconds),
            ..scene.answer(Kind::Advertise, &refusal(Status::NO_ADDRESSES))
        });
        // The next search has it.
        scene.hear(&scene.rapid(&one()));
        scene.now += Duration::from_secs(200);
        scene.wait();
        let pauses: Vec<f64> = (0..30).map(|_| scene.wait().as_secs_f64()).collect();
        let last = pauses[29];
        assert!((expected * 0.89..=expected * 1.11).contains(&last), "{seconds}: {pauses:?}");
    }
}

#[test]
fn a_server_that_refuses_its_own_offer_is_asked_less_and_less() {
    for code in [Status::NO_ADDRESSES, Status::NOT_ON_LINK, Status::NO_BINDING] {
        let mut scene = Scene::started();
        let mut requests = Vec::new();
        for _ in 0..12 {
            scene.wait_for(Kind::Solicit);
            scene.hear(&Message { preference: Some(255), ..scene.answer(Kind::Advertise, &one()) });
            assert_eq!(scene.last().kind, Kind::Request);
            requests.push(scene.now.as_secs_f64());
            scene.hear(&scene.answer(Kind::Reply, &refusal(code)));
            assert_eq!(unusable(&scene.take_done()).len(), 1);
        }
        let pauses: Vec<f64> = requests.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            (0.9..=1.1).contains(&pauses[0])
                && pauses.is_sorted_by(|one, other| *other > one * 1.6 || *other > 100.0),
            "{pauses:?}"
        );
        assert!(pauses.iter().all(|pause| *pause <= 132.0), "{pauses:?}");
    }
}

#[test]
fn a_reply_without_a_usable_address_is_a_refusal() {
    for bad in [
        granted(&[("fe80::1", 10, 20)]),
        granted(&[(ADDRESS, 0, 0)]),
        Association { id: ID, ..Association::default() },
    ] {
        let mut scene = Scene::started();
        scene.hear(&scene.rapid(&bad));
        assert_eq!(unusable(&scene.take_done()), ["a server's answer has no usable address"]);
        assert!(scene.addresses().is_empty());
        scene.wait_for(Kind::Solicit);
    }
}

#[test]
fn a_server_that_falls_silent_is_left_after_ten_requests() {
    let mut scene = Scene::started();
    scene.hear(&Message { preference: Some(255), ..scene.answer(Kind::Advertise, &one()) });
    for _ in 0..10 {
        assert_eq!(scene.take_done(), []);
        assert!(scene.wait() <= Duration::from_secs(33));
    }
    assert_eq!(unusable(&scene.take_done()), ["the server that made the offer answers no more"]);
    assert_eq!(scene.said().iter().filter(|kind| **kind == "REQUEST").count(), 10);
    scene.wait();
    assert_eq!(scene.last().kind, Kind::Solicit);
}

#[test]
fn trouble_of_the_server_is_waited_out() {
    let mut scene = Scene::started();
    scene.hear(&Message { preference: Some(255), ..scene.answer(Kind::Advertise, &one()) });
    let trouble = Message {
        status: Some(Status { code: 1, text: String::new() }),
        associations: Vec::new(),
        ..scene.answer(Kind::Reply, &one())
    };
    scene.hear(&trouble);
    assert_eq!(unusable(&scene.take_done()), ["the server says: status 1"]);
    scene.hear(&scene.answer(Kind::Reply, &one()));
    assert_eq!(scene.addresses(), [ADDRESS], "the question stood");
}

#[test]
fn at_t1_its_server_and_at_t2_every_server_is_asked_until_the_lease_ends() {
    let mut scene = Scene::bound();
    assert_eq!(scene.wait(), Duration::from_secs(50));
    let renew = scene.last().clone();
    assert_eq!((renew.kind, renew.server.as_deref()), (Kind::Renew, Some(SERVER)));
    assert_eq!(renew.associations[0].addresses, [Leased::wish(ADDRESS.parse().unwrap())]);
    scene.wait_for(Kind::Rebind);
    assert_eq!(scene.now, Duration::from_secs(5080));
    assert_eq!((scene.last().server.as_ref(), scene.last().elapsed), (None, Some(0)));
    scene.wait_for(Kind::Solicit);
    assert_eq!(scene.now, Duration::from_secs(5200));
    assert_eq!(scene.take_done(), [Action::Lost("the lease expired".into())]);
    assert_eq!(scene.last().associations[0].addresses, [Leased::wish(ADDRESS.parse().unwrap())], "as a wish");
    assert!(scene.addresses().is_empty());
}

#[test]
fn a_renewal_prolongs_and_another_server_may_rebind() {
    let mut scene = Scene::bound();
    scene.wait();
    scene.hear(&scene.answer(Kind::Reply, &one()));
    assert_eq!(scene.take_done(), [Action::Bound]);
    assert_eq!(scene.dialogue.lease.as_ref().unwrap().next_end(), Some(Duration::from_secs(5250)));
    scene.wait();
    assert_eq!((scene.last().kind, scene.now), (Kind::Renew, Duration::from_secs(5100)));
    let foreign = Message { server: Some(OTHER.to_vec()), ..scene.answer(Kind::Reply, &one()) };
    scene.hear(&foreign);
    assert_eq!(scene.take_done(), [], "RENEW was to one server");
    scene.wait_for(Kind::Rebind);
    scene.hear(&Message { server: Some(OTHER.to_vec()), ..scene.answer(Kind::Reply, &one()) });
    assert_eq!(scene.take_done(), [Action::Bound]);
    assert_eq!(scene.dialogue.lease.as_ref().unwrap().server, OTHER);
}

#[test]
fn a_server_that_forgot_us_is_asked_to_take_us_on_again() {
    let mut scene = Scene::bound();
    scene.wait();
    scene.hear(&scene.answer(Kind::Reply, &refusal(Status::NO_BINDING)));
    let request = scene.last();
    assert_eq!((request.kind, request.server.as_deref()), (Kind::Request, Some(SERVER)));
    assert_eq!(request.associations[0].addresses, [Leased::wish(ADDRESS.parse().unwrap())]);
    assert_eq!(scene.addresses(), [ADDRESS], "it is ours until it ends");
    scene.hear(&scene.answer(Kind::Reply, &one()));
    assert_eq!((scene.take_done(), scene.addresses()), (vec![Action::Bound], vec![ADDRESS.to_owned()]));
}

#[test]
fn a_server_that_forgot_us_and_does_not_take_us_on_costs_little() {
    let mut scene = Scene::bound();
    while scene.dialogue.lease.is_some() {
        scene.wait();
        while matches!(scene.last().kind, Kind::Renew | Kind::Rebind | Kind::Request) {
            let count = scene.sent.len();
            let code =
                if scene.last().kind == Kind::Request { Status::NO_ADDRESSES } else { Status::NO_BINDING };
            scene.hear(&scene.answer(Kind::Reply, &refusal(code)));
            if scene.sent.len() == count {
                break;
            }
        }
    }
    assert_eq!(scene.now, Duration::from_secs(5200), "held until it ended");
    assert!(scene.sent.len() < 30, "{:?}", scene.said());
    assert_eq!(scene.take_done().last(), Some(&Action::Lost("the lease expired".into())));
}

#[test]
fn an_address_that_is_taken_back_is_lost_at_once() {
    let mut scene = Scene::bound();
    scene.wait();
    scene.hear(&scene.answer(Kind::Reply, &granted(&[(ADDRESS, 0, 0)])));
    assert_eq!(scene.take_done(), [Action::Lost("the server took the address back".into())]);
    assert_eq!(scene.last().kind, Kind::Solicit);
}

#[test]
fn a_renewal_may_bring_another_address_for_the_old_one() {
    let mut scene = Scene::bound();
    scene.wait();
    scene.hear(&scene.answer(Kind::Reply, &granted(&[(ADDRESS, 0, 0), (SECOND, 100, 200)])));
    assert_eq!((scene.take_done(), scene.addresses()), (vec![Action::Bound], vec![SECOND.to_owned()]));
}

#[test]
fn of_two_addresses_the_longer_one_stays() {
    let mut scene = Scene::started();
    scene.hear(&scene.rapid(&granted(&[(ADDRESS, 1000, 2000), (SECOND, 1000, 1500)])));
    scene.take_done();
    while scene.now < Duration::from_secs(6500) {
        scene.wait();
    }
    assert_eq!((scene.take_done(), scene.addresses()), (vec![Action::Bound], vec![ADDRESS.to_owned()]));
}

#[test]
fn a_renewal_that_says_nothing_of_us_is_none() {
    let mut scene = Scene::bound();
    scene.wait();
    let foreign = Association { id: ID + 1, ..one() };
    scene.hear(&scene.answer(Kind::Reply, &foreign));
    scene.hear(&scene.answer(Kind::Reply, &Association { t1: 9, t2: 8, ..one() }));
    assert_eq!(scene.take_done(), []);
    scene.wait_for(Kind::Rebind);
}

#[test]
fn what_lasts_forever_wakes_nobody() {
    let mut scene = Scene::started();
    scene.hear(&scene.rapid(&granted(&[(ADDRESS, u32::MAX, u32::MAX)])));
    assert_eq!(scene.dialogue.wake(), None);
}

#[test]
fn answers_of_others_change_nothing() {
    let mut questions = vec![Scene::started()];
    let mut requesting = Scene::started();
    requesting.hear(&Message { preference: Some(255), ..requesting.answer(Kind::Advertise, &one()) });
    let mut renewing = Scene::bound();
    renewing.wait();
    let mut releasing = Scene::bound();
    let actions = releasing.dialogue.release(releasing.now);
    releasing.note(actions);
    questions.extend([requesting, renewing, releasing]);
    for mut scene in questions {
        let asked = scene.last().kind;
        let right = match asked {
            Kind::Solicit => scene.rapid(&one()),
            _ => scene.answer(Kind::Reply, &one()),
        };
        let wrong = [
            Message { transaction: right.transaction ^ 1, ..right.clone() },
            Message { client: None, ..right.clone() },
            Message { client: Some(vec![0, 4, 1, 2, 4]), ..right.clone() },
            Message { server: None, ..right.clone() },
            Message { kind: Kind::Request, ..right.clone() },
            Message { kind: Kind::Reconfigure, ..right.clone() },
        ];
        let before = (scene.sent.len(), scene.addresses(), scene.dialogue.wake());
        for message in &wrong {
            scene.hear(message);
        }
        if asked != Kind::Solicit {
            scene.hear(&Message { server: Some(OTHER.to_vec()), ..right.clone() });
        }
        let bytes = right.encode();
        for length in 0..bytes.len() - 1 {
            // Cut between two options it is a message still, but never one with all that an answer needs.
            if Message::decode(&bytes[..length]).is_err() {
                scene.hear_bytes(&bytes[..length]);
            }
        }
        assert_eq!(scene.take_done(), [], "{}", asked.name());
        assert_eq!((scene.sent.len(), scene.addresses(), scene.dialogue.wake()), before, "{}", asked.name());
        scene.hear(&right);
        assert!(asked == Kind::Release || scene.take_done() == [Action::Bound], "the right one is taken");
    }
}

#[test]
fn an_answer_that_comes_when_nothing_is_asked_is_passed_over() {
    let mut scene = Scene::bound();
    scene.hear(&scene.rapid(&granted(&[(SECOND, 100, 200)])));
    assert_eq!((scene.take_done(), scene.addresses()), (vec![], vec![ADDRESS.to_owned()]));
}

#[test]
fn release_names_the_server_and_the_address_and_ends_with_the_answer_or_after_four() {
    let mut scene = Scene::bound();
    let actions = scene.dialogue.release(scene.now);
    scene.note(actions);
    let release = scene.last();
    assert_eq!((release.kind, release.server.as_deref()), (Kind::Release, Some(SERVER)));
    assert_eq!(release.associations[0].addresses, [Leased::wish(ADDRESS.parse().unwrap())]);
    assert_eq!(scene.addresses(), Vec::<String>::new());
    let mut silent = Scene { dialogue: scene.dialogue.clone(), now: scene.now, sent: vec![], done: vec![] };
    scene.hear(&scene.answer(Kind::Reply, &refusal(Status::NO_BINDING)));
    assert_eq!((scene.dialogue.listens(), scene.dialogue.wake()), (false, None));
    while silent.dialogue.wake().is_some() {
        silent.wait();
    }
    assert_eq!((silent.said().len(), silent.done), (3, vec![]));
}

#[test]
fn release_before_there_is_a_lease_gives_back_what_was_asked_for() {
    let mut scene = Scene::started();
    assert_eq!(scene.dialogue.release(scene.now), []);
    assert!(!scene.dialogue.listens());
    let mut scene = Scene::started();
    scene.hear(&Message { preference: Some(255), ..scene.answer(Kind::Advertise, &one()) });
    let actions = scene.dialogue.release(scene.now);
    scene.note(actions);
    assert_eq!(scene.said(), ["SOLICIT", "REQUEST", "RELEASE"]);
    assert_eq!(scene.last().associations[0].addresses, [Leased::wish(ADDRESS.parse().unwrap())]);
}

#[test]
fn a_duplicate_is_declined_and_another_address_looked_for() {
    let mut scene = Scene::bound();
    let now = scene.now;
    assert_eq!(scene.dialogue.duplicate(now, SECOND.parse().unwrap()), [], "that one is not ours");
    let actions = scene.dialogue.duplicate(now, ADDRESS.parse().unwrap());
    scene.note(actions);
    let lost = format!("{ADDRESS} is a duplicate: somebody else on the link has it");
    assert_eq!(scene.take_done(), [Action::Lost(lost)]);
    let decline = scene.last();
    assert_eq!((decline.kind, decline.server.as_deref()), (Kind::Decline, Some(SERVER)));
    assert_eq!(decline.associations[0].addresses, [Leased::wish(ADDRESS.parse().unwrap())]);
    let mut silent = Scene { dialogue: scene.dialogue.clone(), now, sent: scene.sent.clone(), done: vec![] };
    scene.hear(&scene.answer(Kind::Reply, &Association { id: ID, ..Association::default() }));
    assert_eq!(scene.last().kind, Kind::Solicit);
    assert_eq!(scene.last().associations[0].addresses, [], "the duplicate is not wished for");
    silent.wait_for(Kind::Solicit);
    assert_eq!(silent.said().iter().filter(|kind| **kind == "DECLINE").count(), 4);
}

#[test]
fn of_two_addresses_the_duplicate_alone_goes() {
    let mut scene = Scene::started();
    scene.hear(&scene.rapid(&granted(&[(ADDRESS, 1000, 2000), (SECOND, 1000, 2000)])));
    scene.take_done();
    let actions = scene.dialogue.duplicate(scene.now, ADDRESS.parse().unwrap());
    scene.note(actions);
    assert_eq!((scene.take_done(), scene.addresses()), (vec![Action::Bound], vec![SECOND.to_owned()]));
    scene.hear(&scene.answer(Kind::Reply, &Association { id: ID, ..Association::default() }));
    assert!(!scene.dialogue.listens());
}

fn resumed() -> Scene {
    let lease = Scene::bound().dialogue.lease.unwrap();
    let mut scene = Scene::new(3);
    scene.now += Duration::from_secs(10);
    scene.dialogue.resume(lease);
    scene.wait();
    scene
}

#[test]
fn after_a_restart_the_servers_are_asked_whether_the_address_belongs_here() {
    let mut scene = resumed();
    assert_eq!(scene.sent.len(), 0, "not all clients at once");
    assert!(scene.wait() < Duration::from_secs(1));
    let confirm = scene.last().clone();
    assert_eq!((confirm.kind, confirm.server.as_ref()), (Kind::Confirm, None));
    assert_eq!(confirm.associations[0].addresses, [Leased::wish(ADDRESS.parse().unwrap())]);
    scene.hear(&scene.answer(Kind::Reply, &refusal(Status::SUCCESS)));
    assert_eq!((scene.take_done(), scene.dialogue.listens()), (vec![], false));
    scene.wait();
    assert_eq!((scene.last().kind, scene.now), (Kind::Renew, Duration::from_secs(5050)), "T1 is what it was");
}

#[test]
fn an_unanswered_confirm_leaves_the_lease_as_it_was() {
    let mut scene = resumed();
    scene.wait();
    let begun = scene.now;
    while scene.dialogue.listens() {
        scene.wait();
    }
    assert_eq!(scene.now - begun, Duration::from_secs(10));
    assert_eq!((scene.take_done(), scene.addresses()), (vec![], vec![ADDRESS.to_owned()]));
}

#[test]
fn an_address_that_does_not_belong_here_is_lost() {
    let mut scene = resumed();
    scene.wait();
    let status = Some(Status { code: Status::NOT_ON_LINK, text: String::new() });
    scene.hear(&Message { status, associations: vec![], ..scene.answer(Kind::Reply, &one()) });
    assert_eq!(scene.take_done(), [Action::Lost("the address does not belong on this link any more".into())]);
    assert_eq!(scene.last().kind, Kind::Solicit);
}

#[test]
fn what_ended_while_the_daemon_was_away_is_lost_at_once() {
    let lease = Scene::bound().dialogue.lease.unwrap();
    let mut scene = Scene::new(3);
    scene.now += Duration::from_secs(300);
    scene.dialogue.resume(lease);
    scene.wait();
    assert_eq!(
        (scene.take_done(), scene.said()),
        (vec![Action::Lost("the lease expired".into())], vec!["SOLICIT"])
    );
}

/// Whatever comes in whatever order: no panic, no flood, no address without a lease.
mod anything {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Happening {
        Wait,
        Reply {
            rapid: bool,
            own: bool,
            code: u16,
            preferred: u32,
            valid: u32,
            t1: u32,
            t2: u32,
            second: bool,
        },
        Advertise {
            preference: u8,
            code: u16,
        },
        Noise(Vec<u8>),
        Duplicate,
        Release,
        Start,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let seconds = prop_oneof![0_u32..300, Just(u32::MAX)];
        let times = [seconds.clone(), seconds.clone(), seconds.clone(), seconds];
        let reply = (any::<[bool; 3]>(), 0_u16..6, times).prop_map(
            |([rapid, own, second], code, [preferred, valid, t1, t2])| Happening::Reply {
                rapid,
                own,
                code,
                preferred,
                valid,
                t1,
                t2,
                second,
            },
        );
        prop_oneof![
            6 => Just(Happening::Wait),
            8 => reply,
            4 => (any::<u8>(), 0_u16..3).prop_map(|(preference, code)| Happening::Advertise { preference, code }),
            1 => vec(any::<u8>(), 0..60).prop_map(Happening::Noise),
            1 => Just(Happening::Duplicate),
            1 => Just(Happening::Release),
            1 => Just(Happening::Start),
        ]
    }

    fn happen(scene: &mut Scene, happening: &Happening) {
        match happening {
            Happening::Wait if scene.dialogue.wake().is_some() => {
                scene.wait();
            }
            Happening::Wait => {}
            Happening::Reply { rapid, own, code, preferred, valid, t1, t2, second } => {
                let address = if *second { SECOND } else { ADDRESS };
                let association = Association {
                    t1: *t1,
                    t2: *t2,
                    status: (*code != 0).then(|| Status { code: *code, text: String::new() }),
                    ..granted(&[(address, *preferred, *valid)])
                };
                let server = if *own { SERVER } else { OTHER };
                let reply = scene.answer(Kind::Reply, &association);
                scene.hear(&Message { rapid_commit: *rapid, server: Some(server.to_vec()), ..reply });
            }
            Happening::Advertise { preference, code } => {
                let association = if *code == 0 { one() } else { refusal(*code) };
                let offer = scene.answer(Kind::Advertise, &association);
                scene.hear(&Message { preference: Some(*preference), ..offer });
            }
            Happening::Noise(bytes) => scene.hear_bytes(bytes),
            Happening::Duplicate => {
                let actions = scene.dialogue.duplicate(scene.now, ADDRESS.parse().unwrap());
                scene.note(actions);
            }
            Happening::Release => {
                let actions = scene.dialogue.release(scene.now);
                scene.note(actions);
            }
            Happening::Start => {
                let actions = scene.dialogue.start(scene.now, None);
                scene.note(actions);
            }
        }
    }

    proptest! {
        #[test]
        fn no_order_of_events_breaks_the_client(seed in any::<u64>(), happenings in vec(happening(), 0..120)) {
            let mut scene = Scene::new(seed);
            let actions = scene.dialogue.start(scene.now, None);
            scene.note(actions);
            for happening in &happenings {
                let before = scene.sent.len();
                happen(&mut scene, happening);
                prop_assert!(scene.sent.len() <= before + 1, "one event, at most one message");
                let held = scene.dialogue.lease.as_ref();
                prop_assert!(held.is_none_or(|lease| !lease.addresses.is_empty()));
                if let (true, Some(wake)) = (scene.dialogue.listens(), scene.dialogue.wake()) {
                    prop_assert!(wake > scene.now || scene.dialogue.lease.is_some());
                }
            }
            // Left alone, the clock always moves: no event is due twice at one moment more than a few times.
            let mut turns = 0;
            let mut at = scene.now;
            for _ in 0..50 {
                if scene.dialogue.wake().is_none() {
                    break;
                }
                scene.wait();
                turns = if scene.now == at { turns + 1 } else { 0 };
                at = scene.now;
                prop_assert!(turns < 4, "{:?}", scene.said());
            }
        }
    }
}
