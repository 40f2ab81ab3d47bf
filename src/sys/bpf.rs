//! What bpf(2) is asked beside loading programs, which a crate does: maps and their memory, links, and test runs.
//!
//! Keys and values are bytes here; their lengths are compared with the map's before the kernel is told where they are.
//!
//! # Thread-safety
//! Everything may be called from any thread at any time; the kernel orders it.

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Kinds of maps (`enum bpf_map_type`) of whose values the kernel reads and writes as many as there are processors.
const PER_CPU: [u32; 4] = [5, 6, 10, 21];

/// Commands of bpf(2) (`enum bpf_cmd`).
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapUpdate = 2,
    MapDelete = 3,
    ProgTestRun = 10,
    LinkNextId = 31,
    LinkFdById = 30,
    InfoByFd = 15,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// `attach_type` of XDP programs (`BPF_XDP`).
const ATTACH_XDP: u32 = 37;

/// `bpf_link_info.type` of XDP programs (`BPF_LINK_TYPE_XDP`).
const LINK_XDP: u32 = 6;

/// Runs a command on `attributes`, a part of `union bpf_attr`.
///
/// # Safety
/// `attributes` must be the part that the command takes, laid out as the kernel's, and what it points to must be as long as
/// the command reads and writes there, until this returns.
unsafe fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are as the caller promises; the size is theirs, and the kernel takes what lies behind as zero.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command as i32, &raw mut *attributes, size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

/// A map by its file descriptor.
pub struct Map {
    fd: OwnedFd,
    key_len: usize,
    value_len: usize,
    entries: u32,
}

#[derive(Default)]
#[repr(C)]
struct MapElement {
    map: RawFd,
    unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(Default)]
#[repr(C)]
struct MapBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: RawFd,
    element_flags: u64,
    flags: u64,
}

#[derive(Default)]
#[repr(C)]
struct InfoRequest {
    fd: RawFd,
    len: u32,
    info: u64,
}

/// The first members of `struct bpf_map_info`.
#[derive(Default)]
#[repr(C)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The first members of `struct bpf_link_info`, of an XDP program's.
#[derive(Default)]
#[repr(C)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    unused: u32,
    interface: u32,
    /// The union's other members are longer.
    rest: [u32; 11],
}

fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let (len, place) = (size_of::<T>() as u32, &raw mut info as u64);
    let mut request = InfoRequest { fd: fd.as_raw_fd(), len, info: place };
    // SAFETY: the kernel writes no more than `len` bytes, which `info` has; it is integers only (the two types above).
    unsafe { bpf(Command::InfoByFd, &mut request)? };
    Ok(info)
}

impl Map {
    /// # Errors
    /// Not a map, or one with a value for each processor.
    pub fn new(fd: OwnedFd) -> io::Result<Map> {
        let MapInfo { kind, key_size, value_size, max_entries, .. } = info(fd.as_fd())?;
        if PER_CPU.contains(&kind) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Map { fd, key_len: key_size as usize, value_len: value_size as usize, entries: max_entries })
    }

    pub fn value_len(&self) -> usize {
        self.value_len
    }

    fn element(&self, key: &[u8], value: *mut c_void, value_len: usize) -> io::Result<MapElement> {
        if key.len() != self.key_len || value_len != self.value_len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(MapElement { map: self.fd.as_raw_fd(), key: key.as_ptr() as u64, value: value as u64, ..Default::default() })
    }

    /// Puts `value` at `key`, in place of what is there.
    ///
    /// # Errors
    /// `E2BIG`: the map is full. `InvalidInput`: lengths that are not the map's.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.put(key, value, 0)
    }

    /// Puts `value` at `key`, where nothing is.
    ///
    /// # Errors
    /// `EEXIST`: something is there. Else as of [`Map::update`].
    pub fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        // BPF_NOEXIST
        self.put(key, value, 1)
    }

    fn put(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        // Not written through.
        let element = self.element(key, value.as_ptr().cast_mut().cast(), value.len())?;
        let mut element = MapElement { flags, ..element };
        // SAFETY: the map's command, and key and value are as long as the map's, which `element` compared; both are only read.
        unsafe { bpf(Command::MapUpdate, &mut element).map(drop) }
    }

    /// Puts each of `values` at the key of the same place in `keys`, in place of what is there. Keys and values lie one behind the other, and
    /// there is at least one.
    ///
    /// # Errors
    /// How many were put, and why the next was not, as of [`Map::update`].
    pub fn update_all(&self, keys: &[u8], values: &[u8]) -> Result<(), (usize, io::Error)> {
        let count = keys.len() / self.key_len;
        if count == 0 || keys.len() != count * self.key_len || values.len() != count * self.value_len {
            return Err((0, io::ErrorKind::InvalidInput.into()));
        }
        let (keys, values) = (keys.as_ptr() as u64, values.as_ptr() as u64);
        let (count, map) = (count as u32, self.fd.as_raw_fd());
        let mut batch = MapBatch { keys, values, count, map, ..Default::default() };
        // SAFETY: the map's command; keys and values are as long as `count` of them, which was compared above, and are only read; the
        // kernel writes `count` alone.
        match unsafe { bpf(Command::MapUpdateBatch, &mut batch) } {
            Ok(_) => Ok(()),
            // It is as it was when the kernel did not come to the first.
            Err(error) if batch.count >= count => Err((0, error)),
            Err(error) => Err((batch.count as usize, error)),
        }
    }

    /// # Errors
    /// `NotFound`: nothing is there.
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        let mut element = self.element(key, std::ptr::null_mut(), self.value_len)?;
        // SAFETY: the map's command, and the key is as long as the map's; a value is not looked at.
        unsafe { bpf(Command::MapDelete, &mut element).map(drop) }
    }

    /// The memory of an array that was made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// Not such a map, or no memory.
    pub fn memory(&self) -> io::Result<Memory> {
        let value = self.value_len.next_multiple_of(8);
        let len = (value * self.entries as usize).next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping where the kernel has room for it touches no memory in use.
        let place = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &self.fd, 0)?
        };
        let place = NonNull::new(place.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Memory { place, len })
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A map's memory, shared with the programs that use it.
pub struct Memory {
    place: NonNull<u8>,
    /// Bytes, whole pages.
    len: usize,
}

impl Memory {
    /// The 64-bit number `at` bytes from the start.
    ///
    /// # Panics
    /// If `at` is no multiple of 8, or outside.
    #[inline]
    pub fn u64(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < self.len, "inside the map and aligned");
        // SAFETY: inside the mapping, which is pages and so as aligned as `at`, and lives as long as the reference; kernel and programs
        // write it, too, but we touch it as atomics only, here and below.
        unsafe { self.place.add(at).cast::<AtomicU64>().as_ref() }
    }

    /// The 32-bit number `at` bytes from the start.
    ///
    /// # Panics
    /// If `at` is no multiple of 4, or outside.
    #[inline]
    pub fn u32(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at < self.len, "inside the map and aligned");
        // SAFETY: as in `u64`.
        unsafe { self.place.add(at).cast::<AtomicU32>().as_ref() }
    }

    /// Writes `bytes` from the byte `at` on.
    ///
    /// # Panics
    /// If they do not end inside.
    #[inline]
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "inside the map");
        // SAFETY: inside the mapping, of which this is the only reference, so that `bytes` is elsewhere, and no atomic is borrowed here. A program
        // that reads it meanwhile sees bytes of before or after.
        unsafe { self.place.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody else knows; references into it are over. Unmapping what is mapped does not fail.
        let _ = unsafe { munmap(self.place.as_ptr().cast(), self.len) };
    }
}

// SAFETY: the mapping is not bound to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared, it is only touched as atomics; `write` has it alone.
unsafe impl Sync for Memory {}

/// A program's hold on an interface; closing it detaches the program.
pub struct XdpLink(OwnedFd);

/// What a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XdpLinkInfo {
    pub id: u32,
    /// Of the program.
    pub program: u32,
    /// 0 when the interface is gone, or somebody has detached it.
    pub interface: u32,
}

impl XdpLink {
    /// Attaches a program to the interface of this index. `flags`: `XDP_FLAGS_…` of `linux/if_link.h`.
    ///
    /// # Errors
    /// `EBUSY`: another program is attached. `EOPNOTSUPP`, `ERANGE` and others: not in this mode.
    pub fn attach(program: BorrowedFd<'_>, interface: u32, flags: u32) -> io::Result<XdpLink> {
        let mut attributes = [program.as_raw_fd() as u32, interface, ATTACH_XDP, flags];
        // SAFETY: four 32-bit numbers, as this command begins; nothing is pointed to.
        let fd = unsafe { bpf(Command::LinkCreate, &mut attributes)? };
        // SAFETY: a new descriptor, which nobody else knows.
        Ok(XdpLink(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Puts another program in the place of the one attached, without a moment between.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attributes = [self.0.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
        // SAFETY: four 32-bit numbers, as this command takes; nothing is pointed to.
        unsafe { bpf(Command::LinkUpdate, &mut attributes).map(drop) }
    }

    pub fn info(&self) -> io::Result<XdpLinkInfo> {
        let RawLinkInfo { id, program, interface, .. } = info(self.0.as_fd())?;
        Ok(XdpLinkInfo { id, program, interface })
    }

    /// Detaches it from whoever holds it.
    fn detach(&self) -> io::Result<()> {
        let mut attributes = [self.0.as_raw_fd() as u32, 0];
        // SAFETY: a 32-bit number, and one that is zero; nothing is pointed to.
        unsafe { bpf(Command::LinkDetach, &mut attributes).map(drop) }
    }

    /// Detaches every link of the program of this number at the interface of this index. Answers with how many there were.
    pub fn detach_others(program: u32, interface: u32) -> io::Result<usize> {
        let (mut after, mut detached) = (0, 0);
        loop {
            let mut attributes = [after, 0, 0];
            // SAFETY: three 32-bit numbers, of which the second is written; nothing is pointed to.
            match unsafe { bpf(Command::LinkNextId, &mut attributes) } {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(detached),
                other => other?,
            };
            after = attributes[1];
            let mut attributes = [after, 0, 0];
            // SAFETY: as above, but that nothing is written.
            let Ok(fd) = (unsafe { bpf(Command::LinkFdById, &mut attributes) }) else { continue };
            // SAFETY: a new descriptor, which nobody else knows.
            let link = XdpLink(unsafe { OwnedFd::from_raw_fd(fd) });
            let raw: RawLinkInfo = info(link.0.as_fd())?;
            if (raw.kind, raw.program, raw.interface) == (LINK_XDP, program, interface) {
                link.detach()?;
                detached += 1;
            }
        }
    }
}

/// What a program did with a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestRun {
    /// `XDP_…` of `linux/bpf.h`.
    pub action: u32,
    /// What it wrote in front of the frame, and the frame.
    pub metadata: Vec<u8>,
    pub frame: Vec<u8>,
}

/// `struct xdp_md`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

#[derive(Default)]
#[repr(C)]
struct TestRunRequest {
    program: RawFd,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    unused: u32,
}

/// Lets an XDP program see `frame`, of at least 14 bytes, as if it came to the loopback interface; it goes nowhere.
///
/// # Errors
/// Frames that the kernel does not take, or no such program.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<TestRun> {
    // Room for metadata and for what is pushed.
    let mut out = vec![0u8; frame.len() + 256];
    let context = XdpContext { data_end: frame.len() as u32, ..Default::default() };
    let mut after = XdpContext::default();
    let mut request = TestRunRequest {
        program: program.as_raw_fd(),
        data_size_in: frame.len() as u32,
        data_size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        ctx_size_in: size_of::<XdpContext>() as u32,
        ctx_size_out: size_of::<XdpContext>() as u32,
        ctx_in: &raw const context as u64,
        ctx_out: &raw mut after as u64,
        ..Default::default()
    };
    // SAFETY: the four places are as long as the request says, and those that are written are ours and integers.
    unsafe { bpf(Command::ProgTestRun, &mut request)? };
    let whole = (request.data_size_out as usize).min(out.len());
    // The kernel gives the metadata first, and says by the context where the frame begins.
    let begin = ((after.data - after.data_meta.min(after.data)) as usize).min(whole);
    Ok(TestRun { action: request.retval, metadata: out[..begin].to_vec(), frame: out[begin..whole].to_vec() })
}

/// Runs a TC program (`BPF_PROG_TYPE_SCHED_CLS`) once, on a packet that has at first the bytes `within` of `memory`, 14 to some 3,700 of
/// them. It goes nowhere by itself.
///
/// # Errors
/// No memory, no such program, or not so many bytes.
///
/// # Panics
/// If the bytes are not inside.
pub fn run_on(program: BorrowedFd<'_>, memory: &Memory, within: Range<usize>) -> io::Result<()> {
    assert!(within.start <= within.end && within.end <= memory.len, "inside the map");
    let mut request = TestRunRequest {
        program: program.as_raw_fd(),
        data_size_in: within.len() as u32,
        data_in: memory.place.as_ptr() as u64 + within.start as u64,
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: the place is inside the mapping for as long as the request says, and the kernel only reads it.
    unsafe { bpf(Command::ProgTestRun, &mut request).map(drop) }
}

/// Lets an XDP program see `frame` so many `times`, as real frames that go where it sends them: a load generator in the kernel.
/// Returns when all have been seen.
///
/// # Errors
/// Frames that the kernel does not take, no such program, or a kernel older than 5.18.
pub fn let_live(program: BorrowedFd<'_>, frame: &[u8], times: u32) -> io::Result<()> {
    /// `BPF_F_TEST_XDP_LIVE_FRAMES`.
    const LIVE: u32 = 2;
    let context = XdpContext { data_end: frame.len() as u32, ..Default::default() };
    let mut request = TestRunRequest {
        program: program.as_raw_fd(),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat: times,
        ctx_size_in: size_of::<XdpContext>() as u32,
        ctx_in: &raw const context as u64,
        flags: LIVE,
        batch_size: 64,
        ..Default::default()
    };
    // SAFETY: the two places are as long as the request says, and only read.
    unsafe { bpf(Command::ProgTestRun, &mut request).map(drop) }
}
