//! The task of a consumer.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, WeakUnboundedSender};

use super::Options;
use super::delivery::{Command, Delivery};
use crate::{Client, Error};

pub(super) async fn run(
    client: Client,
    options: Options,
    commands: WeakUnboundedSender<Command>,
    mut inbox: UnboundedReceiver<Command>,
    outbox: UnboundedSender<Result<Delivery, Error>>,
) {
    let _ = (client, options, commands, outbox);
    while inbox.recv().await.is_some() {}
}
