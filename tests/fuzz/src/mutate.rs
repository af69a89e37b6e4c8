//! Inputs made of others: cut, joined, repeated, with octets and words exchanged.

use std::collections::BTreeSet;

use crate::draw::Draw;

/// Makes inputs of a corpus.
#[derive(Debug)]
pub(crate) struct Mutator<'a> {
    corpus: &'a [Vec<u8>],
    /// The words of the corpus, and those that parsers stumble over.
    words: Vec<Vec<u8>>,
    octets_max: usize,
}

impl<'a> Mutator<'a> {
    pub(crate) fn new(corpus: &'a [Vec<u8>], octets_max: usize) -> Self {
        let mut words: BTreeSet<Vec<u8>> = WORDS.iter().map(|word| word.to_vec()).collect();
        words.extend(corpus.iter().flat_map(|input| of(input)).take(WORDS_MAX).map(<[u8]>::to_vec));
        Self { corpus, words: words.into_iter().collect(), octets_max }
    }

    /// Another input: one of the corpus, changed in one to six ways.
    pub(crate) fn input(&self, draw: &mut Draw) -> Vec<u8> {
        let mut input = draw.pick(self.corpus).cloned().unwrap_or_default();
        for _ in 0..=draw.below(3) + draw.below(4) {
            self.change(&mut input, draw);
            input.truncate(self.octets_max);
        }
        input
    }

    fn change(&self, input: &mut Vec<u8>, draw: &mut Draw) {
        let (from, to) = span(input.len(), draw);
        match draw.below(12) {
            0 => {
                if let Some(octet) = input.get_mut(from) {
                    *octet ^= 1 << draw.below(8);
                }
            }
            1 => {
                if let Some(octet) = input.get_mut(from) {
                    *octet = octet_of(draw);
                }
            }
            2 => input.insert(from, octet_of(draw)),
            3 => drop(input.drain(from..to)),
            4 => input.truncate(from),
            // A part once more, beside itself or elsewhere.
            5 => {
                let part = input[from..to].to_vec();
                let at = draw.below(input.len() + 1);
                input.splice(at..at, part);
            }
            // Many times: depth, length and repeated keys.
            6 => {
                let part = &input[from..to.min(from + REPEATED_MAX)];
                let count = draw.below(self.octets_max / part.len().max(1) + 1).min(COUNT_MAX);
                let many = part.repeat(count);
                input.splice(from..from, many);
            }
            // The rest of another input, or a part of it.
            7 => {
                let other = draw.pick(self.corpus).map_or(&[][..], |other| other);
                let (start, end) = span(other.len(), draw);
                let end = if draw.below(2) == 0 { other.len() } else { end };
                input.splice(from..to, other[start..end].iter().copied());
            }
            // A number of two or four octets.
            8 => {
                let number = NUMBERS[draw.below(NUMBERS.len())].to_be_bytes();
                let number = if draw.below(2) == 0 { &number[2..] } else { &number[..] };
                let end = (from + number.len()).min(input.len());
                input.splice(from..end, number.iter().copied());
            }
            way => {
                let word = draw.pick(&self.words).map_or(&[][..], |word| word);
                let end = if way == 9 { from } else { to };
                input.splice(from..end, word.iter().copied());
            }
        }
    }
}

/// A part of so many octets, mostly a short one.
fn span(length: usize, draw: &mut Draw) -> (usize, usize) {
    let from = draw.below(length + 1);
    let most = if draw.below(4) == 0 { length - from } else { (length - from).min(SHORT) };
    (from, from + draw.below(most + 1))
}

fn octet_of(draw: &mut Draw) -> u8 {
    match draw.below(3) {
        0 => OCTETS[draw.below(OCTETS.len())],
        1 => b' ' + u8::try_from(draw.below(95)).unwrap_or_default(),
        _ => u8::try_from(draw.below(256)).unwrap_or_default(),
    }
}

/// The words of an input: runs of letters and digits, and runs of what is between them.
fn of(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_letter = |octet: &u8| octet.is_ascii_alphanumeric() || *octet == b'_';
    input
        .chunk_by(move |a, b| is_letter(a) == is_letter(b))
        .filter(|word| word.len() <= WORD_OCTETS_MAX)
}

const OCTETS: [u8; 24] = *b"\0\x01\x7f\x80\xff\n\r\t \"'\\/%.:;,{}[]()";
const NUMBERS: [u32; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, u32::MAX];
const WORDS: [&[u8]; 36] = [
    b"0",
    b"-1",
    b"00",
    b"1e999",
    b"65536",
    b"4294967296",
    b"18446744073709551616",
    b"null",
    b"true",
    b"\"\"",
    b"{}",
    b"[]",
    b"[[[[[[[[",
    b"{\"a\":",
    b"..",
    b"/../",
    b"%2e%2e",
    b"%2f",
    b"%00",
    b"%zz",
    b"%25",
    b"//",
    b"\r\n",
    b"\r\n\r\n",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xef\xbf\xbd",
    b"\xe2\x80\xae",
    b"\\u0000",
    b"\\ud800",
    b"${x}",
    b"<<EOT\n",
    b"*",
    b"(",
    b"not ",
    b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];
const WORDS_MAX: usize = 4_000;
const WORD_OCTETS_MAX: usize = 40;
const SHORT: usize = 12;
const REPEATED_MAX: usize = 16;
const COUNT_MAX: usize = 200;
