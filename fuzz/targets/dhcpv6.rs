//! Datagrams of any server and advertisements of any router: never a panic, and a message once decoded is the
//! same after a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plugins::ipam::dhcp::v6::message::Message;
use plugins::ipam::dhcp::v6::router::Advertisement;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
    if let Some(found) = Advertisement::decode(bytes) {
        assert!(found.on_link.iter().chain(&found.routes).all(|net| *net == net.trunc()));
        assert!(found.mtu.is_none_or(|mtu| mtu >= 1280));
    }
});
