//! The task of a producer.

use tokio::sync::mpsc::UnboundedReceiver;

use super::{Command, Options};
use crate::Client;

pub(super) async fn run(client: Client, options: Options, mut inbox: UnboundedReceiver<Command>) {
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Send(outgoing) => {
                debug_assert!(outgoing.size_bytes > 0);
                let sent = client.send(&options.queue, vec![outgoing.message]).await;
                let _ = outgoing.reply.send(sent.and_then(|mut sent| sent.remove(0)));
                drop(outgoing.permit);
            }
            Command::Flush(done) => drop(done.send(())),
            Command::Close(done) => {
                inbox.close();
                drop(done);
            }
        }
    }
}
