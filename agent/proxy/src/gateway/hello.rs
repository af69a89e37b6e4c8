//! The ClientHello: read up to a bound, understood as far as the server's name, never decrypted.

use std::io;

use bytes::BufMut as _;
use hawser_core::reason::Reason;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What a gateway wants to know of a ClientHello.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Hello {
    /// The name of the server that is asked for, in lower case; none when none is.
    pub(crate) name: Option<String>,
    /// The client's random octets: no two handshakes have the same.
    pub(crate) random: [u8; 32],
}

/// Why no ClientHello came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unreadable {
    /// The connection ended before its first octet: somebody looked whether the port is open.
    Nothing,
    /// The connection broke, or ended within the message.
    Cut,
    /// It is not TLS.
    NotTls,
    /// It is TLS and no well-formed ClientHello.
    Malformed,
    /// It is larger than [`HELLO_BYTES_MAX`].
    TooLarge,
}

impl Unreadable {
    /// The mesh's word for it.
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Nothing | Self::Cut => Reason::DownstreamReset,
            Self::NotTls => Reason::Plaintext,
            Self::Malformed | Self::TooLarge => Reason::HandshakeFailed,
        }
    }
}

/// Takes octets as they arrive until they hold a ClientHello, whatever way it is cut into records.
///
/// Each octet is looked at once, so that sending one at a time costs a sender more than us.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// What arrived, as it is to be passed on.
    raw: Vec<u8>,
    /// Where in `raw` the next record begins.
    next: usize,
    /// The handshake's octets, without the heads of records.
    message: Vec<u8>,
}

impl Reader {
    /// Reads from `stream` until the ClientHello is whole; answers it with all that arrived.
    ///
    /// # Errors
    /// [`Unreadable`], as soon as it is known.
    pub(crate) async fn read<R>(mut self, stream: &mut R) -> Result<(Hello, Vec<u8>), Unreadable>
    where
        R: AsyncRead + Unpin,
    {
        loop {
            let room = HELLO_BYTES_MAX - self.raw.len();
            if room == 0 {
                return Err(Unreadable::TooLarge);
            }
            if self.raw.len() == self.raw.capacity() {
                self.raw.reserve(room.min(READ_BYTES));
            }
            let read = stream.read_buf(&mut (&mut self.raw).limit(room)).await;
            match read.map_err(|error: io::Error| error.kind()) {
                Ok(0) if self.raw.is_empty() => return Err(Unreadable::Nothing),
                Ok(0) | Err(_) => return Err(Unreadable::Cut),
                Ok(_) => {}
            }
            if let Some(hello) = self.advance()? {
                return Ok((hello, self.raw));
            }
        }
    }

    /// Takes in the records that are whole by now.
    fn advance(&mut self) -> Result<Option<Hello>, Unreadable> {
        loop {
            let rest = &self.raw[self.next..];
            if rest.first().is_some_and(|kind| *kind != HANDSHAKE)
                || rest.get(1).is_some_and(|major| *major != MAJOR)
            {
                let is_first = self.next == 0;
                return Err(if is_first { Unreadable::NotTls } else { Unreadable::Malformed });
            }
            let Some(head) = rest.first_chunk::<RECORD_HEAD>() else { return Ok(None) };
            let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
            // TLS forbids empty handshake records, and larger ones than this.
            if length == 0 || length > RECORD_BYTES_MAX {
                return Err(Unreadable::Malformed);
            }
            if self.next + RECORD_HEAD + length > HELLO_BYTES_MAX {
                return Err(Unreadable::TooLarge);
            }
            let Some(body) = rest.get(RECORD_HEAD..RECORD_HEAD + length) else { return Ok(None) };
            self.message.extend_from_slice(body);
            self.next += RECORD_HEAD + length;
            if let Some(hello) = self.whole()? {
                return Ok(Some(hello));
            }
        }
    }

    /// The message, once it is whole.
    fn whole(&self) -> Result<Option<Hello>, Unreadable> {
        if self.message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Unreadable::Malformed);
        }
        let Some(head) = self.message.first_chunk::<MESSAGE_HEAD>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize;
        if length > HELLO_BYTES_MAX {
            return Err(Unreadable::TooLarge);
        }
        match self.message.get(MESSAGE_HEAD..MESSAGE_HEAD + length) {
            // Nothing may follow a ClientHello before its answer.
            Some(_) if self.message.len() > MESSAGE_HEAD + length => Err(Unreadable::Malformed),
            Some(body) => understand(body).map(Some).ok_or(Unreadable::Malformed),
            None => Ok(None),
        }
    }
}

/// Reads a ClientHello's body (RFC 8446, section 4.1.2); none when it is malformed.
fn understand(body: &[u8]) -> Option<Hello> {
    let mut body = Octets(body);
    let _version = body.take(2)?;
    let random = *body.take(32)?.first_chunk::<32>()?;
    let _session = body.short()?;
    let _suites = body.long()?;
    let _compressions = body.short()?;
    let mut name = None;
    if !body.0.is_empty() {
        let mut extensions = Octets(body.long()?);
        while !extensions.0.is_empty() {
            let kind = extensions.number()?;
            let content = extensions.long()?;
            if kind == SERVER_NAME && name.replace(server_name(content)?).is_some() {
                return None;
            }
        }
    }
    body.0.is_empty().then_some(Hello { name, random })
}

/// The one host name of the extension `server_name` (RFC 6066, section 3).
fn server_name(content: &[u8]) -> Option<String> {
    let mut content = Octets(content);
    let mut names = Octets(content.long()?);
    let mut found = None;
    while !names.0.is_empty() {
        let kind = *names.take(1)?.first()?;
        let name = names.long()?;
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        if kind == HOST_NAME {
            let text = String::from_utf8(name.to_ascii_lowercase()).ok()?;
            if found.replace(text).is_some() {
                return None;
            }
        }
    }
    if content.0.is_empty() { found } else { None }
}

/// Octets that are taken from the front.
struct Octets<'a>(&'a [u8]);

impl<'a> Octets<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk::<2>().map(|octets| u16::from_be_bytes(*octets))
    }

    /// What follows its own length in one octet.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = *self.take(1)?.first()?;
        self.take(length.into())
    }

    /// What follows its own length in two octets.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }
}

/// The largest ClientHello, heads of records included.
pub(crate) const HELLO_BYTES_MAX: usize = 16 * 1024;
/// Room for the usual one, also with a post-quantum key share.
const READ_BYTES: usize = 2 * 1024;
const RECORD_HEAD: usize = 5;
const RECORD_BYTES_MAX: usize = 16 * 1024;
const MESSAGE_HEAD: usize = 4;
const HANDSHAKE: u8 = 22;
const MAJOR: u8 = 3;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hawser_fuzz::Target;
    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// A ClientHello as rustls writes it.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("known versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("good");
        let mut written = Vec::new();
        client.write_tls(&mut written).expect("memory");
        written
    }

    /// The handshake message in `records`, in records of `size` octets each.
    fn cut(records: &[u8], size: usize) -> Vec<u8> {
        let message = &records[RECORD_HEAD..];
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).expect("short").to_be_bytes();
            [&[HANDSHAKE, MAJOR, 1][..], &length, part].concat()
        };
        message.chunks(size).flat_map(record).collect()
    }

    /// Reads `octets` that arrive `step` at a time.
    fn read(octets: &[u8], step: usize) -> Result<Option<Hello>, Unreadable> {
        let mut reader = Reader::default();
        for part in octets.chunks(step) {
            reader.raw.extend_from_slice(part);
            if let Some(hello) = reader.advance()? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }

    /// However it is cut, it is the same; and who ends the handshake sees the name that we saw.
    #[test]
    fn a_hello_is_refused_or_read_as_its_receiver_reads_it() {
        let made = ["web.default.dc1.internal.x.consul", "10.0.0.1"].map(hello);
        let cut = made.each_ref().map(|hello| cut(hello, 100));
        Target::new("client_hello").also(made.into_iter().chain(cut)).cases(15_000).run(|input| {
            let ours = read(input, usize::MAX);
            // Read in pieces it may be whole before its faulty end arrives.
            let in_pieces = read(input, 7);
            match &ours {
                Ok(hello) => assert_eq!(&in_pieces, &Ok(hello.clone())),
                Err(why) => assert!(in_pieces.is_ok() || in_pieces == Err(*why), "{in_pieces:?}"),
            }
            let Ok(Some(hello)) = ours else { return false };
            let mut acceptor = rustls::server::Acceptor::default();
            let mut rest = input;
            while !rest.is_empty() && acceptor.read_tls(&mut rest).is_ok_and(|count| count > 0) {}
            if let Ok(Some(accepted)) = acceptor.accept() {
                // An address is no name: they drop it, and nothing is routed by it.
                if let Some(theirs) = accepted.client_hello().server_name() {
                    assert_eq!(hello.name.as_deref(), Some(theirs));
                }
            }
            true
        });
    }

    #[test]
    fn the_name_is_found_however_it_is_cut() {
        let written = hello("web.default.dc1.internal.1f2e.consul");
        let whole = read(&written, written.len()).expect("good").expect("whole");
        assert_eq!(whole.name.as_deref(), Some("web.default.dc1.internal.1f2e.consul"));
        assert_eq!(whole.random, written[11..43]);
        for size in [1, 2, 3, 4, 5, 7, 64, 200] {
            let cut = cut(&written, size);
            for step in [1, 2, 5, 6, 100, 16_384] {
                let found = read(&cut, step).expect("good");
                assert_eq!(found.as_ref(), Some(&whole), "records of {size}, {step} at a time");
            }
            assert_eq!(read(&cut[..cut.len() - 1], 3), Ok(None), "not whole yet");
        }
    }

    #[test]
    fn what_is_no_hello_is_refused_as_soon_as_it_is_known() {
        let good = hello("web.default.dc1.internal.1f2e.consul");
        let with = |at: usize, octet: u8| {
            let mut changed = good.clone();
            changed[at] = octet;
            changed
        };
        let huge = [&[HANDSHAKE, MAJOR, 1, 0x40, 0, CLIENT_HELLO, 0, 0x3f, 0xf0][..]].concat();
        let endless = [&[HANDSHAKE, MAJOR, 1, 0, 4, CLIENT_HELLO, 1, 0, 0][..]].concat();
        let answered = [&good[..], &[HANDSHAKE, MAJOR, 1]].concat();
        let cases = [
            (b"GET / HTTP/1.1\r\n".to_vec(), Err(Unreadable::NotTls), "HTTP"),
            (b"\x16GET".to_vec(), Err(Unreadable::NotTls), "no version of TLS"),
            (b"\x80\x2e\x01".to_vec(), Err(Unreadable::NotTls), "SSL 2"),
            (with(5, 2), Err(Unreadable::Malformed), "a ServerHello"),
            (
                cut(&good, 10).into_iter().take(15).chain([23]).collect(),
                Err(Unreadable::Malformed),
                "application data within the message",
            ),
            (vec![HANDSHAKE, MAJOR, 1, 0, 0], Err(Unreadable::Malformed), "an empty record"),
            (vec![HANDSHAKE, MAJOR, 1, 0x40, 1], Err(Unreadable::Malformed), "a record too long"),
            (huge, Err(Unreadable::TooLarge), "a record above the bound with its head"),
            (endless, Err(Unreadable::TooLarge), "a message of 64 KiB"),
            (vec![], Ok(None), "nothing"),
        ];
        for (octets, expected, why) in cases {
            assert_eq!(read(&octets, 1), expected, "{why}");
        }
        assert!(read(&answered, 9_999).expect("good").is_some(), "what follows is passed on");
    }

    #[test]
    fn extensions_are_read_strictly() {
        let host = |name: &[u8]| {
            let length = u16::try_from(name.len()).expect("short").to_be_bytes();
            [&[HOST_NAME][..], &length, name].concat()
        };
        let list = |names: &[u8]| {
            [&u16::try_from(names.len()).expect("short").to_be_bytes()[..], names].concat()
        };
        let extension = |content: &[u8]| [&[0, 0][..], &list(content)].concat();
        let body = |extensions: &[u8]| {
            let fixed = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 19, 1], &[1, 0]].concat();
            [fixed, list(extensions)].concat()
        };
        let name = |body: &[u8]| understand(body).map(|hello| hello.name);
        let one = extension(&list(&host(b"Web.X")));
        assert_eq!(name(&body(&one)), Some(Some("web.x".to_owned())), "in lower case");
        assert_eq!(name(&body(&[])), Some(None), "no name at all");
        assert_eq!(name(&body(&[])[..41]), Some(None), "no extensions at all");
        let cases = [
            (body(&[one.clone(), one.clone()].concat()), "two extensions"),
            (body(&extension(&list(&[host(b"a"), host(b"b")].concat()))), "two names"),
            (body(&extension(&list(&host(b"")))), "an empty name"),
            (body(&extension(&list(&host(b"a b")))), "a blank"),
            (body(&extension(&list(&host(b"\xff\xfe")))), "no ASCII"),
            (body(&extension(&[list(&host(b"a")), vec![0]].concat())), "something after the list"),
            ([body(&one), vec![0]].concat(), "something after the extensions"),
            (body(&one)[..50].to_vec(), "cut short"),
        ];
        for (octets, why) in cases {
            assert_eq!(understand(&octets), None, "{why}");
        }
    }

    /// A hundred thousand hellos with a few octets changed, dropped, doubled or cut off: each ends
    /// in an answer, and none in a panic or in more memory than a hello may have.
    #[test]
    fn no_mutated_hello_does_harm() {
        let good = hello("i00c0ffee00c0ffee.web.default.default.east.external.1f2e.consul");
        let seeds = [good.clone(), cut(&good, 16), cut(&good, 1)];
        let mut random = SmallRng::seed_from_u64(0x6a7e_3a11);
        let (mut understood, mut refused, mut unfinished) = (0, 0, 0);
        for round in 0..100_000 {
            let mut octets = seeds[round % seeds.len()].clone();
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(0..octets.len());
                match random.random_range(0..5) {
                    0 => octets[at] = random.random(),
                    1 => octets[at] ^= 1 << random.random_range(0..8),
                    2 if octets.len() > 1 => drop(octets.remove(at)),
                    2 | 3 => octets.insert(at, random.random()),
                    _ => octets.truncate(at.max(1)),
                }
            }
            let mut reader = Reader::default();
            let step = random.random_range(1..=octets.len());
            let mut ended = Ok(None);
            for part in octets.chunks(step) {
                reader.raw.extend_from_slice(part);
                ended = reader.advance();
                if !matches!(ended, Ok(None)) {
                    break;
                }
            }
            assert!(reader.message.capacity() <= 2 * HELLO_BYTES_MAX, "round {round}");
            match ended {
                Ok(Some(_)) => understood += 1,
                Ok(None) => unfinished += 1,
                Err(_) => refused += 1,
            }
        }
        assert!(
            understood > 1_000 && refused > 1_000 && unfinished > 1_000,
            "{understood} understood, {refused} refused, {unfinished} unfinished: all ways are tried"
        );
    }

    #[tokio::test]
    async fn no_more_is_read_than_a_hello_may_have() {
        // One record that never ends its message: the bound is met, whatever is sent.
        let record = [&[HANDSHAKE, MAJOR, 1, 0, 200, CLIENT_HELLO, 0, 0x3f, 0xff][..], &[0; 196]];
        let more = [&[HANDSHAKE, MAJOR, 1, 0, 200][..], &[0; 200]].concat();
        let octets = [record.concat(), more.repeat(100)].concat();
        let mut stream = &octets[..];
        let ended = Reader::default().read(&mut stream).await;
        assert_eq!(ended, Err(Unreadable::TooLarge));
        assert!(octets.len() - stream.len() <= HELLO_BYTES_MAX, "no more was taken");
        let mut stream = &hello("web.x.y")[..20];
        assert_eq!(Reader::default().read(&mut stream).await, Err(Unreadable::Cut));
        assert_eq!(Reader::default().read(&mut &[][..]).await, Err(Unreadable::Nothing));
    }
}
