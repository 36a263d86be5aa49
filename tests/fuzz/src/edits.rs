//! Inputs near good ones: bytes with a few changes, words of a format in any order, or anything.

use bolero::Driver;
use bolero::generator::bolero_generator::TypeGenerator;

/// Most changes of one input.
const MOST: u8 = 6;
/// Most words of one input.
const WORDS: u8 = 40;
/// Most bytes of an input that is like nothing.
const RAW: u16 = 600;
/// Longest input, whatever was repeated.
const LONGEST: usize = 1 << 20;

/// One change. Places are taken modulo the length, so that each is a real one.
#[derive(Debug, Clone, PartialEq, Eq, TypeGenerator)]
pub enum Edit {
    /// Another byte.
    Set(u32, u8),
    /// Another bit.
    Flip(u32, u8),
    /// Bytes in between.
    Insert(u32, [u8; 3]),
    /// A word of the format in between.
    Word(u32, u8),
    /// A word of the format in place of as many bytes.
    Over(u32, u8),
    /// A number at an edge of its range, over one to eight bytes.
    Number(u32, u8),
    /// Bytes away.
    Remove(u32, u8),
    /// Bytes again.
    Repeat(u32, u8, u8),
    /// Bytes from elsewhere.
    Copy(u32, u8, u32),
    /// The end away.
    Cut(u32),
}

/// A few changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edits(pub Vec<Edit>);

/// An input: a good one with changes, words in any order, or bytes like nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// One of the good ones, by its number, with changes.
    Near(u8, Edits),
    /// Words of the format, by their numbers.
    Words(Vec<u8>),
    /// Bytes.
    Raw(Vec<u8>),
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>, words: &[&[u8]]) {
        let length = bytes.len();
        let at = |place: u32| (place as usize).checked_rem(length).unwrap_or(0);
        // One more place than there are bytes: behind the last.
        let gap = |place: u32| place as usize % (length + 1);
        let word = |number: u8| words.get((number as usize).checked_rem(words.len()).unwrap_or(0)).copied();
        let part = |place: u32, len: u8| at(place)..(at(place) + 1 + len as usize % 64).min(length);
        match *self {
            _ if length > LONGEST => {}
            Self::Insert(place, new) => drop(bytes.splice(gap(place)..gap(place), new)),
            Self::Word(place, number) => {
                let new = word(number).unwrap_or_default().to_vec();
                bytes.splice(gap(place)..gap(place), new);
            }
            _ if length == 0 => {}
            Self::Set(place, byte) => bytes[at(place)] = byte,
            Self::Flip(place, bit) => bytes[at(place)] ^= 1 << (bit % 8),
            Self::Over(place, number) => over(bytes, at(place), word(number).unwrap_or_default()),
            Self::Number(place, which) => {
                let all = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
                let number = all[which as usize % all.len()];
                let size = 1 << (which / 16 % 4);
                let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
                over(bytes, at(place), if which < 128 { &little[..size] } else { &big[8 - size..] });
            }
            Self::Remove(place, len) => drop(bytes.drain(part(place, len))),
            Self::Repeat(place, len, times) => {
                let again = bytes[part(place, len)].repeat(times as usize);
                bytes.splice(at(place)..at(place), again);
            }
            Self::Copy(place, len, to) => {
                let again = bytes[part(place, len)].to_vec();
                bytes.splice(gap(to)..gap(to), again);
            }
            Self::Cut(place) => bytes.truncate(at(place)),
        }
    }
}

fn over(bytes: &mut [u8], at: usize, new: &[u8]) {
    for (old, new) in bytes[at..].iter_mut().zip(new) {
        *old = *new;
    }
}

impl Edits {
    /// Applies them to a good input; `words` are of its format.
    #[must_use]
    pub fn apply(&self, good: &[u8], words: &[&[u8]]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for edit in &self.0 {
            edit.apply(&mut bytes, words);
        }
        bytes
    }
}

impl Input {
    /// The bytes that it stands for.
    #[must_use]
    pub fn bytes(&self, good: &[&[u8]], words: &[&[u8]]) -> Vec<u8> {
        match self {
            Self::Near(number, edits) if !good.is_empty() => edits.apply(good[*number as usize % good.len()], words),
            Self::Words(numbers) if !words.is_empty() => {
                numbers.iter().flat_map(|n| words[*n as usize % words.len()]).copied().collect()
            }
            Self::Near(..) | Self::Words(_) => Vec::new(),
            Self::Raw(bytes) => bytes.clone(),
        }
    }

    /// The same as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self, good: &[&str], words: &[&str]) -> String {
        let good: Vec<&[u8]> = good.iter().map(|t| t.as_bytes()).collect();
        let words: Vec<&[u8]> = words.iter().map(|t| t.as_bytes()).collect();
        String::from_utf8_lossy(&self.bytes(&good, &words)).into_owned()
    }
}

fn several<D: Driver, T: TypeGenerator>(driver: &mut D, most: u16) -> Option<Vec<T>> {
    let count = u16::generate(driver)? % (most + 1);
    (0..count).map(|_| T::generate(driver)).collect()
}

impl TypeGenerator for Edits {
    fn generate<D: Driver>(driver: &mut D) -> Option<Self> {
        several(driver, MOST.into()).map(Self)
    }
}

impl TypeGenerator for Input {
    fn generate<D: Driver>(driver: &mut D) -> Option<Self> {
        // Most inputs get far only when most of them is right.
        match u8::generate(driver)? % 10 {
            0 => several(driver, RAW).map(Self::Raw),
            1 | 2 => several(driver, WORDS.into()).map(Self::Words),
            _ => Some(Self::Near(u8::generate(driver)?, Edits::generate(driver)?)),
        }
    }
}
