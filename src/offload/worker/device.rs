//! [`Device`]: one worker's channel to the device, as the worker sees it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::clock;
use crate::offload::backend::{Backend, DeleteError, Done, Generation, Handle, Install, PutError};
use crate::offload::crew::{Crew, Post};
use crate::offload::report::Tally;
use crate::offload::state::FlowStats;

/// A channel with its time measured, its operations counted, its panics caught, and its watch kept.
pub(super) struct Device {
    backend: Box<dyn Backend>,
    /// The last that was seen; `None` before the first rule.
    generation: Option<Generation>,
    crew: Arc<Crew>,
    id: usize,
    /// The latest moment that is known.
    clock: Instant,
}

impl Device {
    pub(super) fn new(id: usize, crew: Arc<Crew>) -> Device {
        // Nothing is asked yet: whoever hires a worker does not wait for the device.
        Device { backend: crew.device.channel(), generation: None, crew, id, clock: clock::now() }
    }

    /// Calls the backend unless the device is off. Its state after a panic is nobody's guess, so it is never called again
    /// then, and its marks are ignored from this moment.
    fn call<T>(&mut self, f: impl FnOnce(&mut dyn Backend) -> T) -> Result<T, String> {
        self.timed(f).0
    }

    /// The same, with the moments before and after.
    fn timed<T>(&mut self, f: impl FnOnce(&mut dyn Backend) -> T) -> (Result<T, String>, std::time::Duration) {
        let begin = Instant::now();
        if let Some(why) = self.crew.off() {
            return (Err(why.to_owned()), std::time::Duration::ZERO);
        }
        let post: &Post = &self.crew.posts[self.id];
        post.begin(self.crew.start, begin);
        let result = catch_unwind(AssertUnwindSafe(|| f(&mut *self.backend)));
        post.end();
        let result = result.map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            let why = format!("the {} device panicked: {text}", self.crew.caps.name);
            log::error!("offload is off: {why}");
            self.crew.fail(why.clone());
            why
        });
        let end = Instant::now();
        self.clock = self.clock.max(clock::at(end));
        (result, end - begin)
    }

    /// It is `now`, or later.
    pub(super) fn tell_time(&mut self, now: Instant) {
        self.clock = self.clock.max(now);
    }

    /// The time when the device last answered, or that it was last told. All that a worker waits for is the device, so it
    /// need not look at the clock again.
    pub(super) fn clock(&self) -> Instant {
        self.clock
    }

    /// An operation on the table, timed.
    fn operate<T>(&mut self, tally: &mut Tally, f: impl FnOnce(&mut dyn Backend) -> T) -> Result<T, String> {
        let (result, time) = self.timed(f);
        tally.device_time.push(time);
        result
    }

    pub(super) fn put(&mut self, flow: Install<'_>, tally: &mut Tally) -> Result<(Handle, Done), PutError> {
        let result = self.operate(tally, |backend| backend.put(flow)).map_err(PutError::Device).flatten();
        tally.operations.put.count(&result);
        result
    }

    /// What became of each put, in order. Each has its share of the time that all took.
    pub(super) fn put_all(
        &mut self,
        flows: &[Install<'_>],
        tally: &mut Tally,
    ) -> Vec<Result<(Handle, Done), PutError>> {
        let mut results = Vec::with_capacity(flows.len());
        let (answer, time) = self.timed(|backend| backend.put_all(flows, &mut results));
        let silence = answer.err().unwrap_or_else(|| "no answer".to_owned());
        results.resize_with(flows.len(), || Err(PutError::Device(silence.clone())));
        for result in &results {
            tally.device_time.push(time / flows.len() as u32);
            tally.operations.put.count(result);
        }
        results
    }

    pub(super) fn replace(
        &mut self,
        handle: Handle,
        flow: Install<'_>,
        tally: &mut Tally,
    ) -> Result<(Done, FlowStats), PutError> {
        self.crew.operated();
        let result = self.operate(tally, |backend| backend.replace(handle, flow)).map_err(PutError::Device).flatten();
        tally.operations.modify.count(&result);
        result
    }

    /// A device that is off has forgotten as far as anybody can tell: its fence keeps its marks away.
    pub(super) fn delete(&mut self, handle: Handle, tally: &mut Tally) -> Result<FlowStats, DeleteError> {
        if self.crew.off().is_some() {
            return Ok(FlowStats::default());
        }
        self.crew.operated();
        let result = self.operate(tally, |backend| backend.delete(handle)).map_err(DeleteError).flatten();
        match &result {
            Ok(_) => tally.operations.delete.done += 1,
            Err(_) => tally.operations.delete.device += 1,
        }
        result
    }

    /// The counts of `handles`, one for each; `None` when they could not be read.
    pub(super) fn stats(&mut self, handles: &[Handle]) -> Option<Vec<FlowStats>> {
        let mut all = Vec::with_capacity(handles.len());
        let result = self.call(|backend| backend.stats(handles, &mut all));
        (matches!(result, Ok(Ok(()))) && all.len() == handles.len()).then_some(all)
    }

    /// Whether it has forgotten every rule since it was last asked. The first time is before the first rule.
    pub(super) fn was_reset(&mut self) -> bool {
        match self.call(|backend| backend.generation()) {
            Ok(now) => self.generation.replace(now).is_some_and(|before| before != now),
            Err(_) => false,
        }
    }

    /// The device's generation when it was last asked for.
    pub(super) fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// Rules come that were in the device at `generation`, to a worker that has none itself.
    pub(super) fn begin_at(&mut self, generation: Option<Generation>) {
        self.generation = generation;
    }

    pub(super) fn flush(&mut self, handles: &[Handle]) -> bool {
        matches!(self.call(|backend| backend.flush(handles)), Ok(Ok(())))
    }
}
