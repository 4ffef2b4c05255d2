// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an NMI does to a map in the middle of what it interrupts on the same core and in the same map: it gets its answer
//! or `EBUSY`, never waits, and both are as if one had come after the other.
//!
//! The interrupting operation runs at each moment at which the test gets control: whenever the map asks its host for
//! something (interrupts masked, the core's number, interrupts restored), and while a value is written or read under the
//! lock. On x86-64 Linux also behind each single instruction, by single steps and a signal's handler.
use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bpf_vm::{
    host::Host,
    map::{
        HeapMemory, Map, MapDefinition, MapError, MapKind, Retired, TailTarget, UpdateFlags,
        ValueWords, memory::read_bytes,
    },
    program::UncheckedProgram,
};

/// Where an operation is interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moment {
    /// The map asks the host: no lock is held.
    Host,
    /// The value is written, read or filled in: under the lock, where there is one.
    Value,
}

type Interrupt = Box<dyn FnOnce(Moment)>;

thread_local! {
    /// What comes at which moment, counted down to 0.
    static PENDING: RefCell<Option<(u32, Interrupt)>> = const { RefCell::new(None) };
    static MASKED: Cell<u64> = const { Cell::new(0) };
}

/// Something may interrupt here.
fn moment(moment: Moment) {
    let due = PENDING.with_borrow_mut(|pending| match pending {
        Some((0, _)) => pending.take(),
        Some((left, _)) => {
            *left -= 1;
            None
        }
        None => None,
    });
    if let Some((_, interrupt)) = due {
        interrupt(moment);
    }
}

struct Interrupted;

impl Host for Interrupted {
    fn ktime_ns(&self) -> u64 {
        0
    }
    fn cpu(&self) -> u32 {
        moment(Moment::Host);
        1
    }
    fn cpus(&self) -> u32 {
        CPUS
    }
    fn current_pid_tgid(&self) -> u64 {
        0
    }
    fn mask_interrupts(&self) -> u64 {
        let state = MASKED.replace(MASKED.get() + 1);
        moment(Moment::Host);
        state
    }
    fn restore_interrupts(&self, state: u64) {
        assert_eq!(MASKED.replace(state), state + 1, "restored out of order");
        moment(Moment::Host);
    }
    fn relax(&self) {
        panic!("one core waits for itself");
    }
    fn print(&self, _: fmt::Arguments<'_>) {}
}

const CPUS: u32 = 3;
/// Elements that a map has beyond those that its keys take.
const SPARE: usize = 2 * CPUS as usize;
/// Keys, values or ids that a map has room for.
const ENTRIES: u32 = 4;
/// Records of 8 bytes that a ring buffer of a page has room for: 16 bytes each, and one byte stays free.
const RECORDS: u32 = 255;

/// A kind of map, and how it takes interruptions.
#[derive(Clone, Copy, Debug)]
struct Row {
    kind: MapKind,
    key: u32,
    value: u32,
    flags: u32,
    /// Updates take a lock: one in the middle of one is `EBUSY`, if it is about the same key.
    locks: bool,
    /// They give it back before the value is written.
    writes_unlocked: bool,
    /// Lookups take it too.
    looks_under_lock: bool,
    /// How many values fit, if it is not that each key has its place.
    room: Option<u32>,
    /// If it is full, something goes.
    evicts: bool,
    /// Whether it counts its elements.
    usage: bool,
    /// One store or exchange is all there is to an update: the host is asked for nothing.
    is_one_store: bool,
}

const fn row(kind: MapKind, key: u32, value: u32, flags: u32) -> Row {
    Row {
        kind,
        key,
        value,
        flags,
        locks: true,
        writes_unlocked: false,
        looks_under_lock: false,
        room: Some(ENTRIES),
        evicts: false,
        usage: true,
        is_one_store: false,
    }
}

/// Every kind.
static ROWS: &[Row] = &[
    Row {
        locks: false,
        usage: false,
        room: None,
        ..row(MapKind::ARRAY, 4, 8, 0)
    },
    Row {
        locks: false,
        usage: false,
        room: None,
        ..row(MapKind::PERCPU_ARRAY, 4, 8, 0)
    },
    row(MapKind::HASH, 4, 8, 0),
    row(MapKind::PERCPU_HASH, 4, 8, 0),
    Row {
        evicts: true,
        ..row(MapKind::LRU_HASH, 4, 8, 0)
    },
    Row {
        evicts: true,
        ..row(MapKind::LRU_PERCPU_HASH, 4, 8, 0)
    },
    row(MapKind::LPM_TRIE, 8, 8, MapDefinition::NO_PREALLOC),
    Row {
        looks_under_lock: true,
        usage: false,
        ..row(MapKind::QUEUE, 0, 8, 0)
    },
    Row {
        looks_under_lock: true,
        usage: false,
        ..row(MapKind::STACK, 0, 8, 0)
    },
    Row {
        writes_unlocked: true,
        room: Some(RECORDS),
        usage: false,
        ..row(MapKind::RINGBUF, 0, 0, 0)
    },
    row(MapKind::TASK_STORAGE, 4, 8, MapDefinition::NO_PREALLOC),
    Row {
        room: None,
        is_one_store: true,
        ..row(MapKind::STACK_TRACE, 4, 16, 0)
    },
    Row {
        room: None,
        usage: false,
        is_one_store: true,
        ..row(MapKind::PROG_ARRAY, 4, 4, 0)
    },
    Row {
        room: None,
        usage: false,
        is_one_store: true,
        ..row(MapKind::ARRAY_OF_MAPS, 4, 4, 0)
    },
    row(MapKind::HASH_OF_MAPS, 4, 4, 0),
];

impl Row {
    fn definition(&self) -> MapDefinition {
        MapDefinition {
            name: "m".into(),
            kind: self.kind,
            key_size: self.key,
            value_size: self.value,
            max_entries: match self.kind {
                MapKind::RINGBUF => 4096,
                _ => ENTRIES,
            },
            flags: self.flags,
        }
    }

    fn create(&self) -> Arc<Map> {
        static REGISTER: Once = Once::new();
        REGISTER.call_once(|| bpf_vm::host::register(&Interrupted).unwrap());
        let memory = HeapMemory::with_limit(1 << 20);
        if self.kind.holds_maps() {
            Map::create_outer(self.definition(), inner_definition(), &memory).unwrap()
        } else {
            Map::create(self.definition(), &memory).unwrap()
        }
    }
}

fn inner_definition() -> MapDefinition {
    MapDefinition {
        name: "inner".into(),
        kind: MapKind::ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        flags: 0,
    }
}

/// What a context does to a map. Queues and ring buffers have no keys, so there it is about the next value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    /// Puts this value in.
    Put(u32, u64),
    /// Takes the value out.
    Take(u32),
    /// Looks at it.
    See(u32),
}
use Act::{Put, See, Take};

/// What a stack trace map calls the trace that stands for a key here.
fn trace_id(key: u32) -> u32 {
    // The ids of a map with so many slots depend on the trace alone.
    let traces = ROWS.iter().find(|row| row.kind == MapKind::STACK_TRACE);
    let scratch = traces.unwrap().create();
    scratch.stack_id(&[key.into()], 0).unwrap()
}

/// What programs and maps are put in: made beforehand, since making them is none of a map's operations.
struct Things {
    target: Arc<TailTarget>,
    inner: Arc<Map>,
    ids: Vec<u32>,
}

impl Things {
    fn new() -> Rc<Self> {
        let program = UncheckedProgram {
            name: "target".into(),
            insns: bpf_vm::asm::assemble("r0 = 1\nexit").unwrap(),
            ..Default::default()
        };
        let target = TailTarget {
            program: Arc::new(program.validate().unwrap()),
            entry: AtomicU64::new(0x1234),
            keep: None,
        };
        let ids = (0..16).map(trace_id).collect();
        let memory = HeapMemory::with_limit(1 << 10);
        Rc::new(Self {
            target: Arc::new(target),
            inner: Map::create(inner_definition(), &memory).unwrap(),
            ids,
        })
    }
}

fn number(words: &[AtomicU64]) -> u64 {
    let mut bytes = [0; 8];
    read_bytes(words, &mut bytes);
    u64::from_ne_bytes(bytes)
}

/// What was taken out of a slot: nobody uses it any more.
fn release<T>(retired: Option<Retired<T>>) {
    if let Some(retired) = retired {
        // SAFETY: no program runs.
        drop(unsafe { retired.release() });
    }
}

/// The key's bytes, as many as the map's keys have.
fn key_bytes(map: &Map, key: u32) -> ([u8; 8], usize) {
    let mut bytes = [0; 8];
    let (low, high) = bytes.split_at_mut(4);
    if map.key_size() == 8 {
        low.copy_from_slice(&32u32.to_ne_bytes());
        high.copy_from_slice(&key.to_ne_bytes());
    } else {
        low.copy_from_slice(&key.to_ne_bytes());
    }
    (bytes, map.key_size())
}

/// Does it: what it answers, the value if it has one. `Busy` where the operation itself says only that nothing came of it.
fn act(map: &Map, things: &Things, act: Act) -> Result<u64, MapError> {
    let (Put(key, _) | Take(key) | See(key)) = act;
    let (bytes, size) = key_bytes(map, key);
    let bytes = &bytes[..size];
    let value = |words: ValueWords<'_>, value: u64| {
        moment(Moment::Value);
        words.write([value]);
    };
    match map.definition().kind {
        MapKind::QUEUE | MapKind::STACK => {
            let mut taken = 0;
            let take = |words: &[AtomicU64]| {
                moment(Moment::Value);
                taken = number(words);
            };
            match act {
                Put(_, new) => map.push(UpdateFlags::Any, |words| value(words, new)),
                Take(_) => map.pop(take),
                See(_) => map.peek(take),
            }
            .map(|()| taken)
        }
        MapKind::RINGBUF => {
            let ring = map.ring_buffer().unwrap();
            match act {
                Put(_, new) => {
                    let record = map.reserve(8).ok_or(MapError::Busy)?;
                    moment(Moment::Value);
                    let at = std::ptr::with_exposed_provenance_mut(record as usize);
                    // SAFETY: a record of 8 bytes, reserved and not committed.
                    unsafe { AtomicU64::from_ptr(at) }.store(new, Relaxed);
                    map.commit(record, false, 0).map(|()| 0)
                }
                Take(_) => {
                    // All of them, as one number.
                    let mut all = 0;
                    ring.drain(|record| {
                        let mut bytes = [0; 8];
                        record.copy_to(&mut bytes);
                        all = u64::wrapping_add(all * 10 % 100_000, u64::from_ne_bytes(bytes));
                    });
                    Ok(all)
                }
                See(_) => Ok(ring.query(1)),
            }
        }
        MapKind::TASK_STORAGE => {
            let (task, id) = (0x1000 + u64::from(key), 0);
            match act {
                Put(_, new) => {
                    // It makes a value for a task that has none, and changes none.
                    let create = Some(|words: ValueWords<'_>| value(words, new));
                    let address = map.task_value(task, id, create);
                    address.map(|_| 0).ok_or(MapError::Busy)
                }
                Take(_) => map.task_ended(task, id).map(|()| 0),
                See(_) => {
                    let mut there = [0; 8];
                    map.read_task_value(task, id, &mut there)
                        .map(|()| u64::from_ne_bytes(there))
                }
            }
        }
        MapKind::STACK_TRACE => {
            let id = things.ids[key as usize].to_ne_bytes();
            match act {
                Put(..) => map.stack_id(&[key.into()], 1 << 10).map(|_| 0),
                Take(_) => map.delete(&id).map(|()| 0),
                See(_) => {
                    let mut trace = [0; 16];
                    map.lookup(&id, &mut trace).map(|()| u64::from(trace[0]))
                }
            }
        }
        MapKind::PROG_ARRAY => match act {
            Put(..) => map
                .set_program(key, Some(things.target.clone()))
                .map(release),
            Take(_) => map.set_program(key, None).map(release),
            See(_) => map.tail_target(key).map(|_| ()).ok_or(MapError::NotFound),
        }
        .map(|()| 0),
        MapKind::ARRAY_OF_MAPS | MapKind::HASH_OF_MAPS => match act {
            Put(..) => map.put_map(bytes, things.inner.clone(), UpdateFlags::Any),
            Take(_) => map.remove_map(bytes),
            See(_) => {
                let inner = map.lookup_address(bytes);
                return inner.map(|_| 0).ok_or(MapError::NotFound);
            }
        }
        .map(release)
        .map(|()| 0),
        _ => match act {
            Put(_, new) => map
                .update_with(bytes, UpdateFlags::Any, |words| value(words, new))
                .map(|()| 0),
            Take(_) => map.delete(bytes).map(|()| 0),
            See(_) => {
                let mut all = [0; 8 * CPUS as usize];
                let all = &mut all[..map.host_value_size()];
                map.lookup(bytes, all)?;
                let mine = if all.len() == 8 { &*all } else { &all[8..16] };
                Ok(u64::from_ne_bytes(mine.try_into().unwrap()))
            }
        },
    }
}

/// What was answered, and what is in the map in the end.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Outcome {
    outer: Result<u64, MapError>,
    inner: Result<u64, MapError>,
    left: Vec<Result<u64, MapError>>,
}

/// What is in the map: each key's value, or all values in order. It takes out what has no key.
fn left(map: &Map, things: &Things) -> Vec<Result<u64, MapError>> {
    let see = |key| act(map, things, See(key));
    match map.definition().kind {
        MapKind::QUEUE | MapKind::STACK | MapKind::RINGBUF => {
            let take = |_| act(map, things, Take(0));
            (0..=ENTRIES).map(take).collect()
        }
        _ => KEYS.map(see).collect(),
    }
}

/// The keys that operations are about.
const KEYS: std::ops::Range<u32> = 0..8;

/// Empties the map and fills it, twice: as much fits as always, and no element is lost.
fn is_whole(row: &Row, map: &Map, things: &Things, case: &str) {
    let uses = |keys: u32| {
        let want = row.usage.then_some((keys, SPARE));
        assert_eq!(map.usage(), want, "{case}");
    };
    for _ in 0..2 {
        match row.kind {
            MapKind::QUEUE | MapKind::STACK => while act(map, things, Take(0)).is_ok() {},
            _ => (0..2 * ENTRIES).for_each(|key| _ = act(map, things, Take(key))),
        }
        uses(0);
        let Some(room) = row.room else {
            continue;
        };
        let keys = (0..=room).take_while(|key| act(map, things, Put(*key, 7)).is_ok());
        let fitted = keys.count() as u32;
        assert_eq!(fitted, if row.evicts { room + 1 } else { room }, "{case}");
        uses(room);
    }
    assert_eq!(MASKED.get(), 0, "{case}");
}

/// What is in the map before: nothing, the key, as many others as there is room for.
static BEFORE: &[&[Act]] = &[
    &[],
    &[Put(1, 5)],
    &[Put(3, 5), Put(4, 5), Put(5, 5), Put(6, 5)],
];

/// One operation in the middle of another one.
#[derive(Clone, Copy, Debug)]
struct Case {
    row: &'static Row,
    before: &'static [Act],
    outer: Act,
    inner: Act,
}

impl Case {
    fn map(&self, things: &Things) -> Arc<Map> {
        let map = self.row.create();
        for before in self.before {
            // An array has no such keys.
            let _ = act(&map, things, *before);
        }
        map
    }

    /// What is answered and left if one comes after the other.
    fn in_turn(&self, things: &Things, inner_first: bool) -> Outcome {
        let map = self.map(things);
        let first = inner_first.then(|| act(&map, things, self.inner));
        let outer = act(&map, things, self.outer);
        let inner = first.unwrap_or_else(|| act(&map, things, self.inner));
        let left = left(&map, things);
        Outcome { outer, inner, left }
    }

    /// What is answered and left if the inner one is told that the map is busy.
    fn busy(&self, things: &Things) -> Outcome {
        let map = self.map(things);
        let outer = act(&map, things, self.outer);
        let (inner, left) = (Err(MapError::Busy), left(&map, things));
        Outcome { outer, inner, left }
    }

    /// Whether the two are as if one had come after the other, or the inner one had been refused if it `may_be_busy`.
    fn check(
        &self,
        things: &Things,
        map: &Map,
        got: (Answer, Answer),
        may_be_busy: bool,
        at: &str,
    ) {
        let case = format!("{self:?} {at}");
        let (outer, inner) = got;
        let got = Outcome {
            outer,
            inner,
            left: left(map, things),
        };
        let either = [false, true].map(|inner_first| self.in_turn(things, inner_first));
        let fits = if self.row.evicts && self.before.len() > 1 {
            // Which key goes is for the hand to say.
            either
                .iter()
                .any(|want| want.outer == outer && want.inner == inner)
                || may_be_busy && outer == self.busy(things).outer && inner == Err(MapError::Busy)
        } else {
            either.contains(&got) || may_be_busy && got == self.busy(things)
        };
        assert!(fits, "{case}: {got:?} is neither of {either:?}");
        is_whole(self.row, map, things, &case);
    }

    /// Whether the outer operation has the inner one's value under its lock while it writes or reads its own.
    fn is_locked_out(&self) -> bool {
        let same = match (self.outer, self.inner) {
            (Put(a, _) | Take(a) | See(a), Put(b, _) | Take(b) | See(b)) => a == b,
        };
        let sees = matches!(self.inner, See(_));
        self.row.locks && (same || self.row.key == 0) && (!sees || self.row.looks_under_lock)
    }
}

type Answer = Result<u64, MapError>;

/// All pairs of operations on all kinds of maps.
fn cases() -> impl Iterator<Item = Case> {
    let pairs = [Put(1, 1), Take(1), See(1)].into_iter().flat_map(|outer| {
        [Put(1, 2), Take(1), See(1), Put(3, 2), Take(3)].map(|inner| (outer, inner))
    });
    ROWS.iter().flat_map(move |row| {
        let pairs = pairs.clone();
        pairs.flat_map(move |(outer, inner)| {
            BEFORE.iter().map(move |before| Case {
                row,
                before,
                outer,
                inner,
            })
        })
    })
}

/// At each moment at which the map calls out.
#[test]
fn an_operation_in_the_middle_of_an_operation() {
    let things = Things::new();
    for case in cases() {
        let mut moments = 0;
        loop {
            let map = case.map(&things);
            let seen = Rc::new(Cell::new(None));
            let interrupt: Interrupt = {
                let (map, things, seen) = (map.clone(), things.clone(), seen.clone());
                Box::new(move |at| seen.set(Some((at, act(&map, &things, case.inner)))))
            };
            PENDING.set(Some((moments, interrupt)));
            let outer = act(&map, &things, case.outer);
            PENDING.set(None);
            let Some((at, inner)) = seen.get() else {
                break;
            };
            let case_at = format!("moment {moments}, {at:?}");
            let under_lock = at == Moment::Value && case.row.locks && !case.row.writes_unlocked;
            if under_lock && case.is_locked_out() {
                assert_eq!(inner, Err(MapError::Busy), "{case:?} {case_at}");
            }
            case.check(&things, &map, (outer, inner), under_lock, &case_at);
            moments += 1;
        }
        let asks =
            !case.row.is_one_store && case.before.is_empty() && matches!(case.outer, Put(..));
        assert!(moments > 0 || !asks, "{case:?}: the host is never asked");
        assert!(moments == 0 || !case.row.is_one_store, "{case:?}");
    }
}

/// Behind each instruction, as an NMI comes: by the trap flag, whose signal is handled on the same thread.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod stepped {
    use super::*;

    /// The trap flag in the flags register: an exception behind each instruction.
    const TRAP: i64 = 1 << 8;

    /// Instructions of each case that are followed by the inner operation.
    const POINTS: u64 = 4;

    thread_local! {
        /// Steps that are left before the inner operation, whose it is, and what it answered.
        static STEPS: Cell<u64> = const { Cell::new(0) };
        static INNER: Cell<Option<(*const Map, *const Things, Act)>> = const { Cell::new(None) };
        static ANSWER: Cell<Option<Answer>> = const { Cell::new(None) };
    }

    extern "C" fn trapped(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        if let Some(left) = STEPS.get().checked_sub(1) {
            STEPS.set(left);
            return;
        }
        if let Some((map, things, inner)) = INNER.take() {
            // SAFETY: whoever steps holds it until stepping is over.
            let map = unsafe { &*map };
            // SAFETY: whoever steps holds it until stepping is over.
            let things = unsafe { &*things };
            ANSWER.set(Some(act(map, things, inner)));
        }
        // SAFETY: the third argument of a handler with SA_SIGINFO.
        let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
        context.uc_mcontext.gregs[libc::REG_EFL as usize] &= !TRAP;
    }

    /// Sets or clears the trap flag of this thread.
    fn step(on: bool) {
        let clear = !TRAP;
        let set = if on { TRAP } else { 0 };
        // SAFETY: only the trap flag changes, and its signal has a handler.
        unsafe {
            std::arch::asm!(
                "pushfq",
                "and [rsp], {clear}",
                "or [rsp], {set}",
                "popfq",
                clear = in(reg) clear,
                set = in(reg) set,
            );
        }
    }

    #[test]
    fn an_operation_behind_any_instruction_of_an_operation() {
        // SAFETY: all zeros are an action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = trapped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: a handler that touches what belongs to its thread, and maps, which may be touched by any context.
        let set = unsafe { libc::sigaction(libc::SIGTRAP, &action, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        let things = Things::new();
        let mut busy = 0;
        let stepped = |case: &Case, inner: Option<Act>, steps: u64| {
            let map = case.map(&things);
            let inner = inner.map(|inner| (Arc::as_ptr(&map), Rc::as_ptr(&things), inner));
            INNER.set(inner);
            STEPS.set(steps);
            ANSWER.set(None);
            step(true);
            let outer = act(&map, &things, case.outer);
            step(false);
            (map, outer, steps - STEPS.get())
        };
        for (index, case) in cases().enumerate() {
            let (_, _, all) = stepped(&case, None, u64::MAX);
            // Some of them, others in the next case.
            for point in 0..POINTS {
                let steps = (all * point + all * index as u64 % POINTS) / POINTS;
                let (map, outer, _) = stepped(&case, Some(case.inner), steps);
                let Some(inner) = ANSWER.take() else {
                    continue;
                };
                busy += u32::from(inner == Err(MapError::Busy));
                let at = format!("after {steps} of {all} instructions");
                case.check(&things, &map, (outer, inner), case.row.locks, &at);
            }
        }
        assert!(busy > 100, "{busy} refused");
    }
}
