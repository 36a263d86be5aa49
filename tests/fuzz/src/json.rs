//! JSON near good JSON: values replaced, taken away, doubled, nested and moved, so that what comes out still parses
//! and the types behind it get to judge it.

use bolero::Driver;
use bolero::generator::bolero_generator::TypeGenerator;
use serde_json::{Map, Number, Value, json};

use crate::edits::Edits;

/// Most changes of one input.
const MOST: u8 = 4;

/// What becomes of a value.
#[derive(Debug, Clone, PartialEq, Eq, TypeGenerator)]
enum Change {
    /// One of the values that are edges for somebody.
    Odd(u8),
    /// A word of the format.
    Word(u8),
    /// A number.
    Number(i64),
    /// It goes.
    Remove,
    /// It stands there twice.
    Twice,
    /// Its name becomes a word of the format.
    Rename(u8),
    /// A field that nobody knows comes in.
    Unknown,
    /// It gets into a list.
    Nest(u8),
    /// It becomes what stands elsewhere.
    Elsewhere(u16),
}

/// One change of one value, by its number in the document.
#[derive(Debug, Clone, PartialEq, Eq, TypeGenerator)]
pub struct JsonEdit {
    at: u16,
    change: Change,
}

/// A body: good JSON with changes, and now and then with changes of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonInput {
    of: u8,
    edits: Vec<JsonEdit>,
    bytes: Option<Edits>,
}

impl TypeGenerator for JsonInput {
    fn generate<D: Driver>(driver: &mut D) -> Option<Self> {
        let of = u8::generate(driver)?;
        let count = u8::generate(driver)? % (MOST + 1);
        let edits = (0..count).map(|_| JsonEdit::generate(driver)).collect::<Option<_>>()?;
        let is_damaged = u8::generate(driver)? % 8 == 0;
        let bytes = if is_damaged { Some(Edits::generate(driver)?) } else { None };
        Some(Self { of, edits, bytes })
    }
}

impl JsonInput {
    /// The bytes that it stands for.
    #[must_use]
    pub fn bytes(&self, good: &[Value], words: &[&str]) -> Vec<u8> {
        let mut document = self.of(good).cloned().unwrap_or_default();
        for edit in &self.edits {
            edit.apply(&mut document, words);
        }
        let bytes = document.to_string().into_bytes();
        self.bytes.as_ref().map_or_else(|| bytes.clone(), |edits| edits.apply(&bytes, &[]))
    }

    /// Which of the good ones it is near to.
    #[must_use]
    pub fn of<'a, T>(&self, good: &'a [T]) -> Option<&'a T> {
        good.get((self.of as usize).checked_rem(good.len())?)
    }
}

/// Values that are edges for somebody.
fn odd(number: u8) -> Value {
    let all: [fn() -> Value; 22] = [
        || Value::Null,
        || json!(true),
        || json!(0),
        || json!(-1),
        || json!(1),
        || json!(255),
        || json!(65_536),
        || json!(u32::MAX),
        || json!(u64::MAX),
        || json!(i64::MIN),
        || json!(9_007_199_254_740_993_u64),
        || json!(0.5),
        || json!(1e300),
        || json!(""),
        || json!("\u{0}"),
        || json!("../../etc/passwd"),
        || json!("é\u{202e}\u{1b}[2J\n\r"),
        || json!("a".repeat(300)),
        || json!("x".repeat(70_000)),
        || json!([]),
        || json!({}),
        || (0..100).fold(Value::Null, |inner, _| json!([inner])),
    ];
    all[number as usize % all.len()]()
}

/// The places of all values, outermost first.
fn places(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match value {
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                places(item, &format!("{here}/{n}"), found);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                places(field, &format!("{here}/{}", name.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        _ => {}
    }
}

impl JsonEdit {
    fn apply(&self, document: &mut Value, words: &[&str]) {
        let mut all = Vec::new();
        places(document, "", &mut all);
        let here = &all[self.at as usize % all.len()];
        let word = |number: u8| words.get((number as usize).checked_rem(words.len()).unwrap_or(0)).copied();
        let elsewhere = match self.change {
            Change::Elsewhere(n) => document.pointer(&all[n as usize % all.len()]).cloned(),
            _ => None,
        };
        if let Change::Remove | Change::Twice | Change::Rename(_) = self.change
            && let Some((parent, last)) = here.rsplit_once('/')
            && let Some(parent) = document.pointer_mut(parent)
        {
            return self.change_in(parent, &last.replace("~1", "/").replace("~0", "~"), &word);
        }
        let Some(value) = document.pointer_mut(here) else { return };
        match self.change {
            Change::Odd(n) => *value = odd(n),
            Change::Word(n) => *value = word(n).unwrap_or_default().into(),
            Change::Number(n) => *value = Value::Number(Number::from(n)),
            Change::Unknown => match value {
                Value::Object(fields) => drop(fields.insert("unknown".to_owned(), Value::Null)),
                other => *other = Value::Object(Map::from_iter([("unknown".to_owned(), other.take())])),
            },
            Change::Nest(times) => {
                for _ in 0..=times % 3 {
                    *value = Value::Array(vec![value.take()]);
                }
            }
            Change::Elsewhere(_) => *value = elsewhere.unwrap_or_default(),
            // The whole document has no place in another one.
            Change::Remove | Change::Twice | Change::Rename(_) => *value = Value::Null,
        }
    }

    /// What happens to a value where it stands in another one.
    fn change_in<'a>(&self, parent: &mut Value, name: &str, word: &impl Fn(u8) -> Option<&'a str>) {
        match (parent, &self.change) {
            (Value::Object(fields), Change::Rename(n)) => {
                let value = fields.remove(name).unwrap_or_default();
                fields.insert(word(*n).unwrap_or_default().to_owned(), value);
            }
            (Value::Object(fields), Change::Twice) => {
                let value = fields.get(name).cloned().unwrap_or_default();
                fields.insert(format!("{name}2"), value);
            }
            (Value::Object(fields), _) => drop(fields.remove(name)),
            (Value::Array(items), change) => {
                let Some(at) = name.parse().ok().filter(|at| *at < items.len()) else { return };
                if *change == Change::Remove {
                    items.remove(at);
                } else {
                    items.insert(at, items[at].clone());
                }
            }
            _ => {}
        }
    }
}
