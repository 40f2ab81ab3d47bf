//! [`Device`]: the backend as the worker sees it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::offload::backend::{
    self, Backend, BackendCaps, DeleteError, Done, Fence, Generation, Handle, Install, PutError,
};
use crate::offload::report::Tally;
use crate::offload::state::FlowStats;

/// The backend, with its time measured, its operations counted, and its panics caught.
pub(super) struct Device {
    pub(super) backend: Box<dyn Backend>,
    pub(super) caps: BackendCaps,
    pub(super) fence: Fence,
    pub(super) generation: Generation,
    /// Why it is not used any more.
    pub(super) off: Option<String>,
}

impl Device {
    pub(super) fn new(device: &dyn backend::Device) -> Device {
        let (backend, caps, fence) = (device.channel(), device.capabilities(), device.fence());
        let mut device = Device { backend, caps, fence, generation: Generation::default(), off: None };
        device.generation = device.call(|backend| backend.generation()).unwrap_or_default();
        device
    }

    /// Calls the backend unless it has panicked before. Its state after a panic is nobody's guess, so it is never
    /// called again, and its marks are ignored from this moment.
    pub(super) fn call<T>(&mut self, f: impl FnOnce(&mut dyn Backend) -> T) -> Result<T, String> {
        if let Some(why) = &self.off {
            return Err(why.clone());
        }
        catch_unwind(AssertUnwindSafe(|| f(&mut *self.backend))).map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            self.fence.raise();
            let why = format!("the {} device panicked: {text}", self.caps.name);
            log::error!("offload is off: {why}");
            self.off = Some(why.clone());
            why
        })
    }

    pub(super) fn timed<T>(&mut self, tally: &mut Tally, f: impl FnOnce(&mut dyn Backend) -> T) -> Result<T, String> {
        let begin = Instant::now();
        let result = self.call(f);
        tally.device_time.push(begin.elapsed());
        result
    }

    pub(super) fn put(&mut self, flow: Install<'_>, tally: &mut Tally) -> Result<(Handle, Done), PutError> {
        let result = self.timed(tally, |backend| backend.put(flow)).map_err(PutError::Device).flatten();
        tally.operations.put.count(&result);
        result
    }

    pub(super) fn replace(&mut self, handle: Handle, flow: Install<'_>, tally: &mut Tally) -> Result<Done, PutError> {
        let result = self.timed(tally, |backend| backend.replace(handle, flow)).map_err(PutError::Device).flatten();
        tally.operations.modify.count(&result);
        result
    }

    /// A device that is off has forgotten as far as anybody can tell: its fence keeps its marks away.
    pub(super) fn delete(&mut self, handle: Handle, tally: &mut Tally) -> Result<FlowStats, DeleteError> {
        if self.off.is_some() {
            return Ok(FlowStats::default());
        }
        let result = self.timed(tally, |backend| backend.delete(handle)).map_err(DeleteError).flatten();
        match &result {
            Ok(_) => tally.operations.delete.done += 1,
            Err(_) => tally.operations.delete.device += 1,
        }
        result
    }

    pub(super) fn stats(&mut self, handles: &[Handle]) -> Option<Vec<FlowStats>> {
        let mut all = Vec::with_capacity(handles.len());
        let result = self.call(|backend| backend.stats(handles, &mut all));
        matches!(result, Ok(Ok(()))).then_some(all)
    }

    pub(super) fn was_reset(&mut self) -> bool {
        match self.call(|backend| backend.generation()) {
            Ok(now) => std::mem::replace(&mut self.generation, now) != now,
            Err(_) => false,
        }
    }

    pub(super) fn flush(&mut self, handles: &[Handle]) -> bool {
        matches!(self.call(|backend| backend.flush(handles)), Ok(Ok(())))
    }
}
