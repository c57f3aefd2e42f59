//! `receive --exec`: a command for a message, in a process group of its own, whose lease is kept while it runs.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use leasehold_client::{Client, Error, ItemResults, Lease, Message, Reason};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::messages::id_text;
use crate::output::Failure;
use crate::receive::may_pass;

const EXTEND_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Of one variable, with its name. Linux starts nothing that is given one of 128 KiB.
const VARIABLE_BYTES_MAX: usize = 100 * 1024;
/// Of all variables of a message. Linux takes a quarter of the stack's limit, mostly 2 MiB, with what is inherited.
const VARIABLES_BYTES_MAX: usize = 1024 * 1024;

/// The process group of the command that runs now, if one does. A signal of the terminal reaches this process and not the command.
#[derive(Clone, Default)]
pub struct Group(Arc<Mutex<Option<Pid>>>);

impl Group {
    /// Starts the command for a message. Its stdin is open.
    ///
    /// # Errors
    /// When the system starts no process.
    pub fn start(&self, command: &str, queue: &str, message: &Message) -> std::io::Result<Child> {
        // Who ends this process waits until the command can be found.
        let mut group = self.lock();
        let child = Command::new("sh")
            .arg("-c")
            .arg(command)
            .envs(environment(queue, message))
            .stdin(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        *group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(child)
    }

    /// The command has ended, and its id may become another's.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    /// Ends this process at once, and the command with all that it started: none goes on without a lease.
    pub fn end_process(&self) -> ! {
        // Held to the end: nothing is started any more.
        let group = self.lock();
        if let Some(pid) = *group {
            // It may have ended by itself.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        std::process::exit(1)
    }

    /// Has the command end with this process where a terminal ends this process: it no longer ends both.
    ///
    /// # Errors
    /// When signals cannot be listened to.
    pub fn end_with_the_terminal(&self) -> Result<(), Failure> {
        for kind in [SignalKind::hangup(), SignalKind::quit()] {
            // Who was started by `nohup` lives on; where the system does not say, nothing changes.
            if std::fs::read_to_string("/proc/self/status").map_or(true, |status| is_ignored(&status, kind)) {
                continue;
            }
            let (mut ends, group) = (signal(kind)?, self.clone());
            tokio::spawn(async move {
                if ends.recv().await.is_some() {
                    group.end_process();
                }
            });
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a process with this status in `/proc` does not hear a signal.
fn is_ignored(status: &str, kind: SignalKind) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default();
    (ignored >> (kind.as_raw_value() - 1)) & 1 == 1
}

/// Gives a command its message, keeps the lease, and says how the command ended.
///
/// # Errors
/// When the system does not tell.
pub async fn attend(
    mut child: Child,
    client: &Client,
    queue: &str,
    message: &Message,
    lease: Duration,
) -> std::io::Result<ExitStatus> {
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command that does not read its input may still succeed.
            let _ = stdin.write_all(&message.body).await;
        }
    };
    tokio::pin!(feed);
    let mut ticks = interval((lease / 3).max(EXTEND_INTERVAL_MIN));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let (mut is_fed, mut is_kept) = (false, true);
    loop {
        tokio::select! {
            status = child.wait() => return status,
            () = &mut feed, if !is_fed => is_fed = true,
            _ = ticks.tick(), if is_kept => {
                let extended = client.extend(queue, &[Lease::new(message.receipt.clone(), lease)]).await;
                is_kept = can_be_kept(&extended);
            }
        }
    }
}

/// Whether to go on extending. A lease that is lost stays lost, and the end of the command tells; all else passes.
fn can_be_kept(extended: &Result<ItemResults<()>, Error>) -> bool {
    let is_lost = |error: &Error| {
        matches!(
            error.reason,
            Reason::ReceiptStale | Reason::MessageGone | Reason::ReceiptForged | Reason::LeaseTooLong
        )
    };
    match extended {
        Ok(results) => !results.iter().filter_map(|result| result.as_ref().err()).any(is_lost),
        Err(error) => may_pass(error),
    }
}

/// What the command is told beside the body. A value with a zero byte cannot be told, nor one that is too long.
fn environment(queue: &str, message: &Message) -> Vec<(String, String)> {
    let mut variables = vec![
        ("LEASEHOLD_QUEUE".to_owned(), queue.to_owned()),
        ("LEASEHOLD_MESSAGE_ID".to_owned(), id_text(message.id)),
        ("LEASEHOLD_RECEIVE_COUNT".to_owned(), message.receive_count.to_string()),
        ("LEASEHOLD_FENCING_TOKEN".to_owned(), message.fencing_token.to_string()),
    ];
    variables.extend(message.group.clone().map(|group| ("LEASEHOLD_GROUP".to_owned(), group)));
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    variables.extend(message.attributes.iter().filter(|attribute| is_name(&attribute.name)).filter_map(
        |attribute| {
            let value = String::from_utf8(attribute.value.to_vec()).ok()?;
            Some((format!("LEASEHOLD_ATTRIBUTE_{}", attribute.name), value))
        },
    ));
    let mut left = VARIABLES_BYTES_MAX;
    variables.retain(|(name, value)| {
        let bytes = name.len() + value.len();
        let fits = bytes <= VARIABLE_BYTES_MAX.min(left) && !value.contains('\0');
        if fits {
            left -= bytes;
        }
        fits
    });
    variables
}

#[cfg(test)]
mod tests {
    use leasehold_client::Outcome;
    use leasehold_client::v1::{Attribute, CallError, Delivery};

    use super::*;

    fn names(attributes: &[(&str, usize)]) -> Vec<String> {
        let attribute = |(name, bytes): &(&str, usize)| Attribute {
            name: (*name).to_owned(),
            value: "x".repeat(*bytes).into(),
            ..Attribute::default()
        };
        let attributes = attributes.iter().map(attribute).collect();
        let message = Message::from(Delivery { attributes, ..Delivery::default() });
        let variables = environment("q", &message);
        assert!(variables.iter().all(|(name, value)| name.len() + value.len() <= VARIABLE_BYTES_MAX));
        let all = variables.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        assert!(all <= VARIABLES_BYTES_MAX, "{all}");
        let names = variables.iter().filter_map(|(name, _)| name.strip_prefix("LEASEHOLD_ATTRIBUTE_"));
        names.map(str::to_owned).collect()
    }

    #[test]
    fn variables_that_no_process_can_be_given_are_left_out() {
        assert_eq!(names(&[("a", 10), ("b", VARIABLE_BYTES_MAX), ("c", 128 * 1024), ("d", 10)]), ["a", "d"]);
        let long = VARIABLE_BYTES_MAX - 100;
        let many = (0..20).map(|number| format!("a{number}")).collect::<Vec<_>>();
        let mut many = many.iter().map(|name| (name.as_str(), long)).collect::<Vec<_>>();
        many.push(("last", 10));
        let kept = names(&many);
        assert_eq!((kept.len(), kept.last().map(String::as_str)), (11, Some("last")));
    }

    #[test]
    fn a_lease_is_kept_until_it_is_lost() {
        let error = |outcome: Outcome, reason: Reason| {
            Error::from(CallError { outcome: outcome as i32, reason: reason as i32, ..CallError::default() })
        };
        let item = |reason| can_be_kept(&Ok(vec![Err(error(Outcome::NotDone, reason))]));
        let call = |reason| can_be_kept(&Err(error(Outcome::NotDone, reason)));
        assert!(can_be_kept(&Ok(vec![Ok(())])));
        for passing in [Reason::NoLeader, Reason::Busy, Reason::TimedOut, Reason::NodeFailed, Reason::None] {
            assert!(item(passing) && call(passing), "{passing:?}");
        }
        for lost in [Reason::ReceiptStale, Reason::MessageGone, Reason::ReceiptForged, Reason::LeaseTooLong] {
            assert!(!item(lost), "{lost:?}");
        }
        assert!(!call(Reason::UnknownQueue));
        assert!(can_be_kept(&Err(error(Outcome::Unknown, Reason::UnknownQueue))));
    }

    #[test]
    fn a_process_that_lives_on_after_its_terminal_says_so() {
        let by_nohup = "Name:\tleasehold\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(is_ignored(by_nohup, SignalKind::hangup()));
        assert!(!is_ignored(by_nohup, SignalKind::quit()));
        assert!(!is_ignored("", SignalKind::hangup()));
    }
}
