//! Where WebSocket frames begin and end (RFC 6455 section 5.2), and the frame that says goodbye.
//!
//! Bytes pass through untouched and unbuffered; only their headers are followed, so that a `Close` of ours comes between two
//! frames and never inside one.

use rand::Rng as _;

/// Status 1001 of RFC 6455 section 7.4.1: the endpoint is going away. Clients take it as the sign to connect again.
const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
/// First byte of a `Close`: final fragment, opcode 8.
const CLOSE: u8 = 0x88;
/// Second byte's bit: the payload is masked, as a client's must be.
const MASKED: u8 = 0x80;
/// Longest header: two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

/// Follows the frames of one direction.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    header: [u8; MAX_HEADER],
    /// Bytes of the header that are here; none between frames and inside a payload.
    have: usize,
    /// Bytes of the payload that are still to come.
    payload: u64,
}

impl Frames {
    /// Follows `bytes`.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let here = self.payload.min(bytes.len() as u64);
                self.payload -= here;
                bytes = bytes.split_at(usize::try_from(here).unwrap_or(bytes.len())).1;
                continue;
            }
            let (byte, rest) = bytes.split_at(1);
            bytes = rest;
            if let (Some(place), Some(byte)) = (self.header.get_mut(self.have), byte.first()) {
                *place = *byte;
            }
            self.have += 1;
            if let Some(payload) = self.whole_header() {
                self.payload = payload;
                self.have = 0;
            }
        }
    }

    /// The payload's length, once the header is whole.
    fn whole_header(&self) -> Option<u64> {
        let [_, second, long @ ..] = self.header;
        let mask = if second & MASKED == 0 { 0 } else { 4 };
        let (extended, length) = match second & !MASKED {
            126 => (2, u64::from(u16::from_be_bytes([long[0], long[1]]))),
            127 => {
                let mut all = [0; 8];
                all.copy_from_slice(long.split_at(8).0);
                (8, u64::from_be_bytes(all))
            }
            short => (0, u64::from(short)),
        };
        (self.have >= 2 && self.have >= 2 + extended + mask).then_some(length)
    }

    /// Between two frames: another one may be put in here.
    pub fn is_between(&self) -> bool {
        self.have == 0 && self.payload == 0
    }
}

/// A `Close` for a client.
pub fn close_for_client() -> Vec<u8> {
    [&[CLOSE, 2], &GOING_AWAY[..]].concat()
}

/// A `Close` for an agent: masked, since we stand in for its client.
pub fn close_for_agent() -> Vec<u8> {
    let mask: [u8; 4] = rand::rng().random();
    let masked = GOING_AWAY.iter().zip(mask).map(|(byte, mask)| byte ^ mask);
    [CLOSE, MASKED | 2]
        .into_iter()
        .chain(mask)
        .chain(masked)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let bit = if masked { MASKED } else { 0 };
        let mut frame = vec![0x82];
        match length {
            0..=125 => frame.push(bit | u8::try_from(length).expect("short")),
            126..=65535 => {
                frame.push(bit | 126);
                frame.extend(u16::try_from(length).expect("medium").to_be_bytes());
            }
            _ => {
                frame.push(bit | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        if masked {
            frame.extend([1, 2, 3, 4]);
        }
        frame.extend(vec![0x88; length]);
        frame
    }

    #[test]
    fn goodbyes_are_whole_frames() {
        assert_eq!(close_for_client(), [0x88, 0x02, 0x03, 0xE9]);
        let close = close_for_agent();
        assert_eq!((close.len(), close[0], close[1]), (8, 0x88, 0x82));
        assert_eq!([close[6] ^ close[2], close[7] ^ close[3]], [0x03, 0xE9]);
        for close in [close_for_client(), close] {
            let mut frames = Frames::default();
            frames.feed(&close);
            assert!(frames.is_between());
        }
    }

    proptest! {
        #[test]
        fn the_end_of_a_frame_is_found_however_the_bytes_come(
            lengths in prop::collection::vec((prop_oneof![0usize..300, 65_530usize..65_540], any::<bool>()), 1..5),
            step in 1usize..2000,
        ) {
            let mut all = Vec::new();
            let mut ends = vec![0];
            for (length, masked) in lengths {
                all.extend(frame(length, masked));
                ends.push(all.len());
            }
            let mut frames = Frames::default();
            let mut at = 0;
            for piece in all.chunks(step) {
                frames.feed(piece);
                at += piece.len();
                prop_assert_eq!(frames.is_between(), ends.contains(&at), "at {}", at);
            }
        }

        #[test]
        fn nonsense_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            Frames::default().feed(&bytes);
        }
    }
}
