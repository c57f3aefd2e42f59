//! Turns a queue of frames into a stream of batches: whatever is waiting goes out together, with what tasks that are ready now add to
//! it; nothing waits for more to come.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;

use super::frame::Frame;
use crate::give_way::Turn;
use crate::limits::{FRAME_BATCH_BYTES_MAX, FRAME_BATCH_FRAMES_MAX};

/// Batches of the frames that come out of a channel; ends with the channel.
pub struct Batches {
    frames: mpsc::UnboundedReceiver<Frame>,
    turn_of_others: Turn,
}

impl Batches {
    pub fn new(frames: mpsc::UnboundedReceiver<Frame>) -> Self {
        Self { frames, turn_of_others: Turn::default() }
    }
}

impl Stream for Batches {
    type Item = Vec<Frame>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Vec<Frame>>> {
        if !self.frames.is_empty() && !self.turn_of_others.was_given(context) {
            return Poll::Pending;
        }
        let first = match self.frames.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(frame)) => frame,
        };
        let mut bytes = first.body.len();
        let mut frames = vec![first];
        while frames.len() < FRAME_BATCH_FRAMES_MAX && bytes < FRAME_BATCH_BYTES_MAX {
            match self.frames.try_recv() {
                Ok(frame) => {
                    bytes += frame.body.len();
                    frames.push(frame);
                }
                Err(_) => break,
            }
        }
        Poll::Ready(Some(frames))
    }
}
