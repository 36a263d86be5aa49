//! What apps used: metered on each host, kept there per app and hour, gathered by the control plane.
//!
//! A host's numbers are absolute totals of an app's hour, so gathering one twice changes nothing. MB are 10⁶ bytes.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AppName, HostId, OrgName};

/// What came on top since the last time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageDelta {
    /// Requests that a guest was started for.
    pub requests: u64,
    /// CPU time, measured.
    pub cpu_us: u64,
    /// Linear memory times the time that it was held.
    pub memory_byte_ms: u64,
    /// Bytes of requests, heads and bodies.
    pub bytes_in: u64,
    /// Bytes of responses, heads and bodies.
    pub bytes_out: u64,
}

impl UsageDelta {
    /// Whether nothing was used.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Adds another; what no number can hold stays at the most that one can.
    pub const fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.cpu_us = self.cpu_us.saturating_add(other.cpu_us);
        self.memory_byte_ms = self.memory_byte_ms.saturating_add(other.memory_byte_ms);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }

    /// What came on top of `before`; a number that went back counts as nothing.
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            cpu_us: self.cpu_us.saturating_sub(before.cpu_us),
            memory_byte_ms: self.memory_byte_ms.saturating_sub(before.memory_byte_ms),
            bytes_in: self.bytes_in.saturating_sub(before.bytes_in),
            bytes_out: self.bytes_out.saturating_sub(before.bytes_out),
        }
    }
}

/// What an app used on one host in one hour: a total, not a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppUsageHour {
    /// Which app.
    pub app: AppName,
    /// Its org.
    pub org: OrgName,
    /// When the hour began.
    pub hour: Timestamp,
    /// The total.
    #[serde(flatten)]
    pub total: UsageDelta,
}

/// A place in a host's usage ledger: which ledger, and its change number. Before all: [`UsageCursor::START`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UsageCursor {
    /// Drawn when the ledger was made; another one begins anew.
    pub ledger: u64,
    /// Changes up to this one were seen.
    pub change: u64,
}

impl UsageCursor {
    /// Before every change of every ledger.
    pub const START: Self = Self { ledger: 0, change: 0 };
}

impl fmt::Display for UsageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.ledger, self.change)
    }
}

impl FromStr for UsageCursor {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || "usage cursor: expected LEDGER-CHANGE as the last page's next gave it".to_owned();
        let (ledger, change) = s.split_once('-').ok_or_else(wrong)?;
        let hex = ledger.len() == 16 && ledger.bytes().all(|b| b.is_ascii_hexdigit());
        let digits = !change.is_empty() && change.bytes().all(|b| b.is_ascii_digit());
        if !hex || !digits {
            return Err(wrong());
        }
        Ok(Self {
            ledger: u64::from_str_radix(ledger, 16).map_err(|_| wrong())?,
            change: change.parse().map_err(|_| wrong())?,
        })
    }
}

impl TryFrom<String> for UsageCursor {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<UsageCursor> for String {
    fn from(cursor: UsageCursor) -> String {
        cursor.to_string()
    }
}

/// `GET /v1/usage` of HostApi: hours that changed after a cursor, in the order of their last change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsagePage {
    /// The totals as they are now.
    pub items: Vec<AppUsageHour>,
    /// Where to go on.
    pub next: UsageCursor,
    /// More changed than the page holds.
    pub more: bool,
}

/// The period that each row of a report is of, in UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum UsagePeriod {
    /// An hour.
    Hour,
    /// A day.
    #[default]
    Day,
    /// A month.
    Month,
}

impl UsagePeriod {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

impl fmt::Display for UsagePeriod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for UsagePeriod {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "hour" => Ok(Self::Hour),
            "day" => Ok(Self::Day),
            "month" => Ok(Self::Month),
            _ => Err(format!("period {s:?}: expected hour, day or month")),
        }
    }
}

/// What `GET /v1/usage` of the admin API is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UsageQuery {
    /// From the hour of this moment on; absent: 30 days before `to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Up to the hour of this moment, without it; absent: now, with its hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    /// Only this org.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgName>,
    /// Only this app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// The period of each row.
    pub by: UsagePeriod,
    /// The last page's `next`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// 1 to 1,000; absent: 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What an app used in one period, over all hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UsageRow {
    /// When the period began (UTC).
    pub start: Timestamp,
    /// The org.
    pub org: OrgName,
    /// The app; absent: the data of services that no app is bound to.
    pub app: Option<AppName>,
    /// Requests that a guest was started for.
    pub requests: u64,
    /// CPU time, measured.
    pub cpu_ms: u64,
    /// Linear memory times the time that it was held; MB of 10⁶ bytes.
    pub memory_mb_s: u64,
    /// Bytes of requests, heads and bodies.
    pub bytes_in: u64,
    /// Bytes of responses, heads and bodies.
    pub bytes_out: u64,
    /// The most that the app's services stored in any hour of the period.
    pub bytes_stored: u64,
}

/// A host whose usage is not known up to now, so that a report may lack something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UsageGap {
    /// Which host.
    pub host: HostId,
    /// When its usage was last gathered; absent: never.
    pub since: Option<Timestamp>,
}

/// `GET /v1/usage` of the admin API: rows by period, org and app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UsageReport {
    /// The rows.
    pub items: Vec<UsageRow>,
    /// Set when more follow: pass it as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Hosts that were not heard lately; what they metered meanwhile is added when they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<UsageGap>,
}
