//! Who answers requests, and how many at once.

use super::error::IntoResponse;
use super::request::Request;
use super::response::Response;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

type Answer = dyn Fn(&mut Request<'_>) -> Response + Send + Sync;

/// A program's handler.
pub struct Handler {
    answer: Box<Answer>,
    is_concurrent: bool,
    /// Whether event streams go on beside requests.
    pub(super) has_streams: bool,
}

impl Handler {
    /// For one request at a time: it may keep state.
    pub fn one_at_a_time<F, R>(handler: F) -> Handler
    where
        F: FnMut(&mut Request<'_>) -> R + Send + 'static,
        R: IntoResponse,
    {
        // Never waited for: there is one place. An earlier panic was answered; the handler goes on.
        let handler = Mutex::new(handler);
        let answer = move |request: &mut Request<'_>| {
            let mut handler = handler.lock().unwrap_or_else(PoisonError::into_inner);
            (*handler)(request).into_response()
        };
        Handler { answer: Box::new(answer), is_concurrent: false, has_streams: true }
    }

    /// For several at once, each in a thread.
    pub fn concurrent<F, R>(handler: F) -> Handler
    where
        F: Fn(&mut Request<'_>) -> R + Send + Sync + 'static,
        R: IntoResponse,
    {
        let answer = move |request: &mut Request<'_>| handler(request).into_response();
        Handler { answer: Box::new(answer), is_concurrent: true, has_streams: true }
    }

    /// An event stream is the handler's work until its end.
    pub fn without_streams(self) -> Handler {
        Handler { has_streams: false, ..self }
    }

    /// Whether several requests may be in it at once.
    pub fn is_concurrent(&self) -> bool {
        self.is_concurrent
    }

    pub(super) fn answer(&self, request: &mut Request<'_>) -> Response {
        (self.answer)(request)
    }
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Handler").field("is_concurrent", &self.is_concurrent).finish_non_exhaustive()
    }
}

/// The places for requests, and the streams beside them.
#[derive(Debug)]
pub(super) struct Places {
    limit: usize,
    max_streams: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// The ids of the requests at work.
    ids: Vec<String>,
    streams: usize,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct PlaceGuard<'a> {
    places: &'a Places,
    /// `None`: a stream, beside the places.
    id: Option<String>,
}

/// An answer's last byte is out a moment before its place is free.
const GRACE_MS: u32 = 20;

impl Places {
    pub(super) fn new(limit: usize, max_streams: usize) -> Places {
        Places { limit, max_streams, taken: Mutex::default() }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// A place for the request of that id, if one is free.
    pub(super) fn take(&self, id: &str) -> Option<PlaceGuard<'_>> {
        for _ in 0..=GRACE_MS {
            let mut taken = self.taken();
            if taken.ids.len() < self.limit {
                taken.ids.push(id.to_owned());
                return Some(PlaceGuard { places: self, id: Some(id.to_owned()) });
            }
            drop(taken);
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// Whether no request is at work, or, of an id, that one is not.
    pub(super) fn are_free(&self, id: &str) -> bool {
        for _ in 0..=GRACE_MS {
            let taken = self.taken();
            let is_free =
                if id.is_empty() { taken.ids.is_empty() } else { !taken.ids.iter().any(|one| one == id) };
            if is_free {
                return true;
            }
            drop(taken);
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn forget(&mut self, id: &str) {
        if let Some(at) = self.ids.iter().position(|one| one == id) {
            self.ids.swap_remove(at);
        }
    }
}

impl PlaceGuard<'_> {
    /// Frees the place for an event stream, which goes on beside. Beyond the bound a stream keeps its place.
    pub(super) fn go_on_beside(&mut self) {
        let mut taken = self.places.taken();
        if taken.streams < self.places.max_streams
            && let Some(id) = self.id.take()
        {
            taken.forget(&id);
            taken.streams += 1;
        }
    }
}

impl Drop for PlaceGuard<'_> {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        match &self.id {
            Some(id) => taken.forget(id),
            None => taken.streams -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_than_there_are_places_is_refused() {
        let places = Places::new(2, 0);
        let (first, _second) = (places.take("1"), places.take("2"));
        assert!(places.take("3").is_none());
        assert!(!places.are_free("1") && !places.are_free("") && places.are_free("3"));
        drop(first);
        assert!(places.are_free("1") && places.take("3").is_some());
    }

    #[test]
    fn a_stream_frees_its_place_up_to_the_bound() {
        let places = Places::new(1, 1);
        let mut first = places.take("1").expect("a place");
        first.go_on_beside();
        let mut second = places.take("2").expect("the place that the stream has left");
        second.go_on_beside();
        assert!(places.take("3").is_none(), "the second stream is one too many");
        drop(first);
        second.go_on_beside();
        assert!(places.take("3").is_some());
    }
}
