//! A packet capture on one cable, and what its TCP streams begin with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_rig::{Net, Process, wait_for};
use rustix::process::Signal;

/// A running `tcpdump`.
pub(crate) struct Capture {
    process: Process,
    file: PathBuf,
}

/// One direction of one TCP connection: addresses and ports as they stand in the packets.
pub(crate) type Flow = ([u8; 4], u16, [u8; 4], u16);

impl Capture {
    /// Captures all that passes on `interface` beside the bridge, into `folder`.
    ///
    /// # Errors
    /// `tcpdump` is not listening within 10 s.
    pub(crate) fn start(net: &Net, interface: &str, folder: &Path) -> Result<Self> {
        let file = folder.join(format!("{interface}.pcap"));
        let mut command = net.command("tcpdump");
        // As root: it would drop to a user who cannot write here.
        command.args(["-Z", "root", "-n", "-U", "-s", "0", "-i", interface, "-w"]).arg(&file);
        let process = Process::spawn("tcpdump", command, &folder.join("tcpdump.log"))?;
        wait_for("tcpdump to listen", Duration::from_secs(10), || {
            let printed = process.printed();
            ensure!(printed.contains("listening on"), "it printed {printed:?}");
            Ok(())
        })?;
        Ok(Self { process, file })
    }

    /// Ends the capture and returns its packets.
    ///
    /// # Errors
    /// It does not end, or its file is no capture.
    pub(crate) fn finish(mut self) -> Result<Packets> {
        self.process.signal(Signal::INT)?;
        self.process.ended(Duration::from_secs(10))?;
        Packets::parse(&fs::read(&self.file)?)
    }

    /// What has been written so far.
    pub(crate) fn so_far(&self) -> Vec<u8> {
        fs::read(&self.file).unwrap_or_default()
    }
}

/// Ethernet frames in the order they passed.
pub(crate) struct Packets(Vec<Vec<u8>>);

impl Packets {
    /// Parses a capture file of this machine's byte order.
    fn parse(file: &[u8]) -> Result<Self> {
        let magic = file.first_chunk::<4>().context("no capture")?;
        ensure!(u32::from_le_bytes(*magic) == 0xa1b2_c3d4, "not a little-endian pcap file");
        let mut rest = &file[24..];
        let mut packets = Vec::new();
        while let Some((header, after)) = rest.split_at_checked(16) {
            let octets = header[8..12].try_into().context("four octets")?;
            let length = usize::try_from(u32::from_le_bytes(octets))?;
            let Some((packet, after)) = after.split_at_checked(length) else { break };
            packets.push(packet.to_vec());
            rest = after;
        }
        Ok(Self(packets))
    }

    /// Whether `text` stands in any packet.
    pub(crate) fn contain(&self, text: &str) -> bool {
        self.0.iter().any(|packet| contains(packet, text.as_bytes()))
    }

    /// For each TCP direction whose beginning was captured: the first octets it carried.
    pub(crate) fn beginnings(&self) -> BTreeMap<Flow, Vec<u8>> {
        let mut next = BTreeMap::new();
        let mut beginnings = BTreeMap::new();
        for segment in self.0.iter().filter_map(|packet| Segment::parse(packet)) {
            if segment.is_syn {
                next.insert(segment.flow, segment.sequence.wrapping_add(1));
            } else if !segment.payload.is_empty()
                && next.get(&segment.flow) == Some(&segment.sequence)
            {
                beginnings.entry(segment.flow).or_insert_with(|| segment.payload.to_vec());
            }
        }
        beginnings
    }

    /// What is neither TCP over IPv4, ARP nor IPv6's own neighbour talk, as hex, bounded.
    pub(crate) fn strangers(&self) -> Vec<String> {
        let strange = self.0.iter().filter(|packet| match packet.get(12..14) {
            Some([0x08, 0x06] | [0x86, 0xdd]) => false,
            Some([0x08, 0x00]) => packet.get(23) != Some(&6),
            _ => true,
        });
        strange.take(5).map(|packet| format!("{packet:02x?}")).collect()
    }
}

struct Segment<'a> {
    flow: Flow,
    sequence: u32,
    is_syn: bool,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        if packet.get(12..14)? != [0x08, 0x00] || *packet.get(23)? != 6 {
            return None;
        }
        let ip = packet.get(14..)?;
        let total = usize::from(u16::from_be_bytes(ip.get(2..4)?.try_into().ok()?));
        // A frame may be longer than its packet: Ethernet pads to 60 octets.
        let ip = if total == 0 { ip } else { ip.get(..total)? };
        let tcp = ip.get(usize::from(ip.first()? & 0x0f) * 4..)?;
        let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let address = |at: usize| ip.get(at..at + 4)?.try_into().ok();
        Some(Self {
            flow: (address(12)?, port(0)?, address(16)?, port(2)?),
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
            is_syn: tcp.get(13)? & 0x02 != 0,
            payload: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?,
        })
    }
}

/// Whether `needle` stands in `hay`.
pub(crate) fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

/// Whether a stream begins with a TLS handshake record.
pub(crate) fn is_tls(beginning: &[u8]) -> bool {
    matches!(beginning, [0x16, 0x03, 0x01..=0x03, ..])
}
