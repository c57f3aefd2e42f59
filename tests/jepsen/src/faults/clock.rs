//! Faults of wall clocks. Nothing that is promised may depend on one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

use super::Scene;
use super::schedule::Planned;
use crate::machine::Control;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// The clock of a node jumps by an hour, forward or back, and later back again.
    #[value(name = "clock-jump")]
    Jump,
    /// The clock of a node is off by up to two minutes, either way.
    #[value(name = "clock-skew")]
    Skew,
    /// The clock of a node jumps to and fro by up to a minute, five times a second.
    #[value(name = "clock-strobe")]
    Strobe,
    /// The clock of a node stands still.
    #[value(name = "clock-frozen")]
    Frozen,
}

pub const LASTS_MS: [u64; 2] = [1_000, 6_000];

const HOUR_MS: i64 = 3_600_000;
const STROBE_PAUSE: Duration = Duration::from_millis(100);

pub fn begin(scene: &mut Scene<'_>, fault: Fault, planned: &Planned) -> Result<String, String> {
    let control = control(scene, planned)?;
    let direction = if planned.choice.is_multiple_of(2) { 1 } else { -1 };
    let off_ms = |most_ms: u64| direction * (planned.choice / 2 % most_ms) as i64;
    let what = match fault {
        Fault::Jump => set(&control, direction * HOUR_MS),
        Fault::Skew => set(&control, off_ms(120_000)),
        Fault::Strobe => {
            let offset_ms = off_ms(60_000);
            scene.repeat(planned, strobe(control, offset_ms));
            Ok(format!("{offset_ms} ms and back"))
        }
        Fault::Frozen => {
            let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_millis() as i64);
            control.freeze_clock(now_ms).map(|()| "stands still".to_owned())
        }
    };
    let what = what.map_err(|error| error.to_string())?;
    Ok(format!("node {} for {:?}: {what}", planned.node + 1, planned.lasts))
}

pub async fn end(scene: &mut Scene<'_>, planned: &Planned) -> Result<(), String> {
    scene.end_repeating(planned).await;
    let control = control(scene, planned)?;
    control.freeze_clock(0).and_then(|()| control.set_clock_offset(0)).map_err(|error| error.to_string())
}

fn control(scene: &Scene<'_>, planned: &Planned) -> Result<Control, String> {
    let machines = scene.machines.ok_or("there are no machines to disturb")?;
    Ok(machines.of(planned.node).control.clone())
}

fn set(control: &Control, offset_ms: i64) -> std::io::Result<String> {
    control.set_clock_offset(offset_ms)?;
    Ok(format!("{offset_ms} ms"))
}

async fn strobe(control: Control, offset_ms: i64) {
    for offset_ms in [offset_ms, 0].into_iter().cycle() {
        if control.set_clock_offset(offset_ms).is_err() {
            return;
        }
        sleep(STROBE_PAUSE).await;
    }
}
