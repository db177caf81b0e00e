//! Whether the certificate that records are sent with is renewed in time.

use jiff::Timestamp;
use serde_json::json;

use crate::discover::TargetKey;
use crate::inspect::Unit;
use crate::judge::defaults::CheckId;
use crate::judge::evidence::{Case, number, object};
use crate::judge::threshold::Seen;
use crate::judge::tracks::{Subject, Tracks};
use crate::judge::{Moment, words};

/// The certificate at a look.
#[derive(Debug, Clone, Copy)]
pub struct CertificateSeen<'a> {
    /// First moment of its life.
    pub begins: Timestamp,
    /// Last moment of its life.
    pub ends: Timestamp,
    /// Why the last attempt to renew it failed, while none succeeded since.
    pub error: Option<&'a str>,
}

pub(super) fn look(seen: &CertificateSeen<'_>, now: Moment, tracks: &mut Tracks) {
    let life = seen.ends.duration_since(seen.begins).as_secs_f64().max(1.0);
    let left = seen.ends.duration_since(now.wall).as_secs_f64();
    let share = (now.wall.duration_since(seen.begins).as_secs_f64() / life).max(0.0);
    let target = TargetKey::agent();
    tracks.observe(Subject::of(CheckId::OwnCertificate, &target), Seen::known(share), now, || {
        let why = seen.error.map(|it| format!(": {}", words::foreign(it, 300))).unwrap_or_default();
        let what = if left > 0.0 {
            format!("ends in {} and is not renewed", words::seconds(left))
        } else {
            format!("ended {} ago: nothing can be sent until it is renewed", words::seconds(-left))
        };
        Case {
            summary: format!("the agent's certificate {what}{why}"),
            evidence: object(json!({
                "ends_at": seen.ends,
                "left_seconds": number(left, Unit::Seconds),
                "life_seconds": number(life, Unit::Seconds),
                "error": seen.error.map(|it| words::foreign(it, 300)),
                "rule": "two thirds of a certificate's life without a new one",
                "not_visible": [],
            })),
            ..Case::default()
        }
    });
}
