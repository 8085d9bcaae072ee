//! Any packet, read as any message that comes off a socket: decoded or refused, and the same again once encoded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nestbox_protocol::frame::{self, Kind};
use nestbox_protocol::{
    BindOpened, Hello, Launch, LaunchControl, LaunchEvent, MountTree, NetworkReply, NetworkRequest, OpenBind,
    Plan, Ready, ServerRequest,
};
use prost::Message;

fn round_trip<M: Message + Default + PartialEq>(bytes: &[u8]) {
    let Ok(message) = M::decode(bytes) else { return };
    let encoded = message.encode_to_vec();
    let again = M::decode(encoded.as_slice()).expect("what we encode decodes");
    assert!(again == message);
    if encoded.len() <= frame::INLINE_MAX {
        let packet = frame::inline(&message);
        assert_eq!(frame::parse(&packet), Ok(Kind::Inline(encoded.as_slice())));
    }
}

fn decode(bytes: &[u8]) {
    round_trip::<Hello>(bytes);
    round_trip::<ServerRequest>(bytes);
    round_trip::<Ready>(bytes);
    round_trip::<Launch>(bytes);
    round_trip::<LaunchEvent>(bytes);
    round_trip::<LaunchControl>(bytes);
    round_trip::<OpenBind>(bytes);
    round_trip::<BindOpened>(bytes);
    round_trip::<NetworkRequest>(bytes);
    round_trip::<NetworkReply>(bytes);
    round_trip::<MountTree>(bytes);
    round_trip::<Plan>(bytes);
}

fuzz_target!(|packet: &[u8]| {
    // As it comes, and behind a header that is right: the fuzzer need not find that out.
    if let Ok(Kind::Inline(body)) = frame::parse(packet) {
        decode(body);
    }
    decode(packet);
    if let Ok(Kind::Spilled(length)) = frame::parse(packet) {
        assert!(length <= frame::MESSAGE_MAX);
        assert_eq!(frame::spilled(length), packet);
    }
});
