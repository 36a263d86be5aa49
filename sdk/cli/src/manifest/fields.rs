//! Values with a spelling of their own: sizes, intervals, routes, env values. Each says in its error
//! what it would have taken.

use std::fmt;

use marcato_api::{Bytes, Millis, Route};
use rand::RngCore;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// Most random bytes that an env value is generated from.
const GENERATE_MAX_BYTES: u64 = 1024;

/// A number of bytes: `"128MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) Bytes);

/// A length of time: `"30s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interval(pub(crate) Millis);

/// A route: `"shop.example.org/api"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteText(pub(crate) Route);

/// A value of `[env]`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum EnvValue {
    /// As it stands.
    Text(String),
    /// That many random bytes as hexadecimal digits, made at the first push.
    Generate(usize),
}

impl fmt::Debug for EnvValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(***)"),
            Self::Generate(n) => write!(f, "Generate({n})"),
        }
    }
}

/// The schema of a service kind.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used; the wire type has no schemars dependency")]
pub(crate) enum Kind {
    /// `marcato:access`: subjects, secure keys, access rights.
    Access,
    /// `wasi:keyvalue`.
    Keyvalue,
}

const SIZES: &[(&str, u64)] = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];
const TIMES: &[(&str, u64)] = &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// `number unit`, both required. The number is a whole one.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        with_unit(s, SIZES)
            .map(|n| Self(Bytes(n)))
            .ok_or_else(|| format!("{:?} is not a size; write one such as \"128MiB\" (B, KiB, MiB, GiB)", cut(s)))
    }
}

impl std::str::FromStr for Interval {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        with_unit(s, TIMES)
            .map(|n| Self(Millis(n)))
            .ok_or_else(|| format!("{:?} is not a length of time; write one such as \"30s\" (ms, s, m, h)", cut(s)))
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

struct Text<T>(&'static str, std::marker::PhantomData<T>);

impl<T: std::str::FromStr<Err = String>> Visitor<'_> for Text<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<T, E> {
        v.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(Text("a size with its unit, such as \"128MiB\"", std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(Text("a length of time with its unit, such as \"30s\"", std::marker::PhantomData))
    }
}

impl std::str::FromStr for RouteText {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Route::parse(s).map(Self)
    }
}

impl<'de> Deserialize<'de> for RouteText {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(Text("a route such as \"shop.example.org/api\"", std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for EnvValue {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = EnvValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text in quotes, or { generate = 32 }")
            }
            fn visit_str<E: Error>(self, v: &str) -> Result<EnvValue, E> {
                Ok(EnvValue::Text(v.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EnvValue, A::Error> {
                let mut bytes = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "generate" {
                        return Err(A::Error::unknown_field(&key, &["generate"]));
                    }
                    bytes = Some(map.next_value::<u64>()?);
                }
                match bytes {
                    Some(n @ 1..=GENERATE_MAX_BYTES) => Ok(EnvValue::Generate(n as usize)),
                    Some(n) => {
                        Err(A::Error::custom(format!("generate = {n} is not within 1 to {GENERATE_MAX_BYTES} bytes")))
                    }
                    None => Err(A::Error::missing_field("generate")),
                }
            }
        }
        d.deserialize_any(V)
    }
}

/// `bytes` random bytes as hexadecimal digits.
pub(super) fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    rand::rng().fill_bytes(&mut random);
    hex::encode(random)
}

macro_rules! text_schema {
    ($type:ty, $name:literal, $pattern:literal, $example:literal) => {
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}

text_schema!(Size, "Size", "^[0-9]+ ?(B|KiB|MiB|GiB)$", "128MiB");
text_schema!(Interval, "Interval", "^[0-9]+ ?(ms|s|m|h)$", "30s");
text_schema!(RouteText, "Route", "^[A-Za-z0-9.-]+(/.*)?$", "shop.example.org/api");

impl JsonSchema for EnvValue {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EnvValue".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A text, or a number of random bytes to make one from (as hex, at the first push, shown once).",
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "generate": { "type": "integer", "minimum": 1, "maximum": GENERATE_MAX_BYTES } },
                    "required": ["generate"],
                    "additionalProperties": false
                }
            ]
        })
    }
}
