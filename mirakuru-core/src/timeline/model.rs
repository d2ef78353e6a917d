//! Turns the events of a run into lanes, services and the critical path.
//!
//! A *lane* is a thread that has used a service, usually a test. It lasts from the first event of
//! the thread until the thread ends. Its time is divided into *pieces*: waiting for a port,
//! starting a service, waiting for a service that another test starts, and stopping a service. The
//! rest is the test's own work. If two starts overlap, the overlapping time counts for the one that
//! ends last. The exit of a process, which stops the services of its statics, is a lane as well.
//!
//! # The critical path
//!
//! The critical path explains the length of the run. Its pieces do not overlap, and together they
//! cover the whole run. The search begins with the lane that ended last and goes back in time. It
//! finds the cause of each wait:
//!
//! - a piece of any kind waits for the piece before it in its lane;
//! - a wait for a port waits for the stop of the service that used the port before;
//! - a wait for a service that another test starts waits for that start;
//! - the beginning of a test waits for the last test that ended before it, in the same process if
//!   possible. The time between them belongs to the runner, and to tests that use no service.

use std::collections::HashMap;

/// Another process may notice an event up to this many ns before the event is recorded.
const LAG: u64 = 20_000_000;

/// How a lane spends one piece of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    EndpointLock,
    Start,
    Wait,
    Body,
    Stop,
    /// Time between tests.
    Gap,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::EndpointLock => "lock",
            Kind::Start => "start",
            Kind::Wait => "wait",
            Kind::Body => "body",
            Kind::Stop => "stop",
            Kind::Gap => "gap",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) kind: Kind,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// The services that the piece starts, stops or waits for. A wait for ports may involve
    /// several.
    pub(crate) services: Vec<usize>,
}

/// A piece of the critical path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) lane: Option<usize>,
    pub(crate) piece: Piece,
}

#[derive(Debug, Default)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    started: u64,
    last: u64,
    /// The times at which a normal exit began, and at which all services were gone.
    exit: Option<(u64, u64)>,
    is_alive: bool,
}

/// How a lane or a service ended, as far as the events tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The end was recorded.
    Seen,
    /// The lane or service is still alive.
    Open,
    /// The process was killed.
    Killed,
}

impl End {
    pub(crate) fn name(self) -> &'static str {
        match self {
            End::Seen => "seen",
            End::Open => "open",
            End::Killed => "killed",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) process: usize,
    pub(crate) thread: u32,
    pub(crate) name: String,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) ended: End,
    /// Whether the lane is the exit of a process, not a test.
    pub(crate) is_exit: bool,
    /// Pieces that cover all of the lane's time, in order and without overlap.
    pub(crate) pieces: Vec<Piece>,
    /// The lane's recorded work, in the order of the events.
    slices: Vec<Piece>,
    seen_end: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Start {
    lane: usize,
    process: usize,
    pub(crate) begin: u64,
    pub(crate) spawned: Option<u64>,
    pub(crate) tries: u32,
    pub(crate) ready: Option<u64>,
    pub(crate) error: Option<String>,
    pub(crate) stop: Option<u64>,
    /// The time at which the service ended or, if no end was recorded, the last time at which it is
    /// known to have run.
    pub(crate) end: u64,
    pub(crate) ended: Option<End>,
    stopper: Option<usize>,
    /// The time at which the main process ended, if it ended before it was stopped.
    pub(crate) died: Option<u64>,
    pub(crate) status: String,
}

#[derive(Debug, Default)]
pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) command: String,
    pub(crate) pid: u32,
    /// Whether the service belongs to the run, and ends with the runner.
    pub(crate) is_run: bool,
    endpoints: Vec<String>,
    pub(crate) starts: Vec<Start>,
    /// The lane, the beginning and the end of each use.
    pub(crate) uses: Vec<(usize, u64, u64)>,
}

/// A run. All times are relative to its beginning.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The time at which the run began, in milliseconds since 1970.
    pub(crate) wall_clock: u64,
    pub(crate) length: u64,
    pub(crate) processes: Vec<Process>,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) services: Vec<Service>,
    pub(crate) path: Vec<Step>,
}

impl Run {
    /// Reads the events. `is_alive` tells whether the process with this id and start time is alive.
    pub(crate) fn of(events: &str, is_alive: fn(u32, u64) -> bool) -> Run {
        let mut reader = Reader::default();
        // The last line may be incomplete if its process was killed, and is then ignored.
        let whole = events.rfind('\n').map_or("", |at| &events[..at]);
        for line in whole.split('\n') {
            reader.read(line);
        }
        reader.finish(is_alive)
    }
}

#[derive(Default)]
struct Reader {
    run: Run,
    first: Option<u64>,
    /// The time of the first process's first event, by CLOCK_MONOTONIC in ns, and in milliseconds
    /// since 1970.
    clocks: Option<(u64, u64)>,
    lanes: HashMap<(usize, u32), usize>,
    services: HashMap<String, usize>,
    /// The service, the lane and the beginning of each use.
    uses: Vec<(usize, usize, u64)>,
}

impl Reader {
    fn read(&mut self, line: &str) -> Option<()> {
        let mut fields = line.split('\t');
        let kind = fields.next()?;
        let pid: u32 = fields.next()?.parse().ok()?;
        let at: u64 = fields.next()?.parse().ok()?;
        let thread: u32 = fields.next()?.parse().ok()?;
        if kind == "P" {
            let (name, started, wall) = (fields.next()?, fields.next()?, fields.next()?);
            let wall: u64 = wall.parse().ok()?;
            self.clocks.get_or_insert((at, wall));
            self.run.processes.push(Process {
                pid,
                name: plain_name(name).to_owned(),
                started: started.parse().ok()?,
                last: at,
                ..Process::default()
            });
            return Some(());
        }
        // The system may reuse a process id: the last process with this id counts.
        let process = self
            .run
            .processes
            .iter()
            .rposition(|process| process.pid == pid)?;
        let mut ends = at;
        // In these events, the next field is the time at which the piece ended.
        if matches!(kind, "W" | "A" | "V" | "X") {
            ends = fields.next()?.parse().ok()?;
        }
        let first = self.first.get_or_insert(at);
        *first = at.min(*first);
        let known = &mut self.run.processes[process];
        known.last = known.last.max(ends);
        self.run.length = self.run.length.max(ends);
        if kind == "X" {
            known.exit = Some((at, ends));
            return Some(());
        }
        let lane = self.lane(process, thread, at);
        match kind {
            "T" => self.run.lanes[lane].name = fields.next()?.to_owned(),
            "N" => {}
            "E" => self.run.lanes[lane].seen_end = Some(at),
            "W" => {
                let mut services = Vec::new();
                for id in fields.next()?.split(' ') {
                    let service = self.service(id);
                    // The wait for ports is not part of the start, so the start begins after it.
                    if let Some(start) = self.run.services[service].starts.last_mut() {
                        if start.spawned.is_none() && start.ended.is_none() && start.begin <= ends {
                            start.begin = ends;
                        }
                    }
                    services.push(service);
                }
                self.slice(lane, Kind::EndpointLock, at, ends, services);
            }
            _ => {
                let service = self.service(fields.next()?);
                self.of_service(kind, service, lane, process, at, ends, &mut fields);
            }
        }
        Some(())
    }

    #[allow(clippy::too_many_arguments)]
    fn of_service<'a>(
        &mut self,
        kind: &str,
        service: usize,
        lane: usize,
        process: usize,
        at: u64,
        ends: u64,
        fields: &mut impl Iterator<Item = &'a str>,
    ) {
        let mut text = || fields.next().unwrap_or_default();
        let known = &mut self.run.services[service];
        match kind {
            "B" => {
                known.name = text().to_owned();
                known.command = text().to_owned();
                known.endpoints = text().split_whitespace().map(str::to_owned).collect();
                known.starts.push(Start {
                    lane,
                    process,
                    begin: at,
                    ..Start::default()
                });
                return;
            }
            "A" => {
                known.name = text().to_owned();
                known.command = text().to_owned();
                return self.slice(lane, Kind::Wait, at, ends, vec![service]);
            }
            "V" => return self.slice(lane, Kind::Wait, at, ends, vec![service]),
            "U" => return self.uses.push((service, lane, at)),
            "L" => known.is_run = true,
            "S" => known.pid = text().parse().unwrap_or(0),
            _ => {}
        }
        let Some(start) = known.starts.last_mut() else {
            return;
        };
        let begin = start.begin;
        match kind {
            "S" => {
                start.spawned.get_or_insert(at);
                start.tries += 1;
            }
            "R" => {
                start.ready = Some(at);
                self.slice(lane, Kind::Start, begin, at, vec![service]);
            }
            "F" => {
                start.error = Some(text().to_owned());
                start.end = at;
                start.ended = Some(End::Seen);
                self.slice(lane, Kind::Start, begin, at, vec![service]);
            }
            // The clean-up after a failed start is part of the start.
            "K" if start.ready.is_some() => start.stop = Some(at),
            "G" if start.stop.is_some() && start.ended.is_none() => {
                let stop = start.stop.unwrap_or(at);
                start.end = at;
                start.ended = Some(End::Seen);
                start.stopper = Some(lane);
                let died = text().parse().ok();
                start.died = died.filter(|died| *died < stop);
                start.status = text().to_owned();
                self.slice(lane, Kind::Stop, stop, at, vec![service]);
            }
            _ => {}
        }
    }

    fn lane(&mut self, process: usize, thread: u32, at: u64) -> usize {
        let lanes = &mut self.run.lanes;
        let index = *self.lanes.entry((process, thread)).or_insert_with(|| {
            lanes.push(Lane {
                process,
                thread,
                name: String::new(),
                begin: at,
                end: at,
                ended: End::Open,
                is_exit: false,
                pieces: Vec::new(),
                slices: Vec::new(),
                seen_end: None,
            });
            lanes.len() - 1
        });
        let lane = &mut lanes[index];
        lane.begin = lane.begin.min(at);
        index
    }

    fn service(&mut self, id: &str) -> usize {
        let services = &mut self.run.services;
        *self.services.entry(id.to_owned()).or_insert_with(|| {
            services.push(Service {
                id: id.to_owned(),
                ..Service::default()
            });
            services.len() - 1
        })
    }

    fn slice(&mut self, lane: usize, kind: Kind, begin: u64, end: u64, services: Vec<usize>) {
        let piece = Piece {
            kind,
            begin,
            end: end.max(begin),
            services,
        };
        self.run.lanes[lane].slices.push(piece);
    }

    fn finish(mut self, is_alive: fn(u32, u64) -> bool) -> Run {
        let last = self.run.length;
        for process in &mut self.run.processes {
            process.is_alive = process.exit.is_none() && is_alive(process.pid, process.started);
        }
        self.end_lanes(last);
        self.end_services(last);
        self.end_processes();
        self.note_uses();
        let mut run = self.run;
        // The earliest time may come from a later event, because events may be written late.
        let first = self.first.unwrap_or(0);
        run.shift(first);
        if let Some((at, wall)) = self.clocks {
            run.wall_clock = wall.saturating_sub(at.saturating_sub(first) / 1_000_000);
        }
        for lane in &mut run.lanes {
            lane.divide();
        }
        run.path = run.critical_path();
        run
    }

    fn end_lanes(&mut self, last: u64) {
        for lane in &mut self.run.lanes {
            let process = &self.run.processes[lane.process];
            (lane.end, lane.ended) = match (lane.seen_end, process.exit) {
                (Some(end), _) => (end, End::Seen),
                (None, Some((exit, _))) => (exit, End::Seen),
                (None, None) if process.is_alive => (last, End::Open),
                (None, None) => (process.last, End::Killed),
            };
            // A destructor of a thread-local may record an event after the end of the thread was
            // recorded.
            let told = lane.slices.iter().map(|slice| slice.end).max();
            lane.end = lane.end.max(told.unwrap_or(0)).max(lane.begin);
        }
    }

    /// Sets the end of each start for which no end was recorded.
    fn end_services(&mut self, last: u64) {
        for (index, service) in self.run.services.iter_mut().enumerate() {
            let again: Vec<u64> = service.starts.iter().skip(1).map(|start| start.begin).collect();
            for (number, start) in service.starts.iter_mut().enumerate() {
                if start.ended.is_some() {
                    continue;
                }
                let process = &self.run.processes[start.process];
                let (end, ended) = match process.exit {
                    _ if service.is_run && start.ready.is_some() => (last, End::Open),
                    Some((exit, gone)) => {
                        start.stop.get_or_insert(exit);
                        (gone, End::Seen)
                    }
                    None if process.is_alive => (last, End::Open),
                    None => (process.last, End::Killed),
                };
                start.end = again.get(number).copied().unwrap_or(end).max(start.begin);
                start.ended = Some(ended);
                if start.ready.is_none() {
                    // The service never became ready, so the lane was busy with this start until
                    // the start ended.
                    let lane = &mut self.run.lanes[start.lane];
                    lane.slices.push(Piece {
                        kind: Kind::Start,
                        begin: start.begin,
                        end: start.end.min(lane.end),
                        services: vec![index],
                    });
                }
            }
        }
    }

    /// Adds a lane for the exit of each process that stopped services.
    fn end_processes(&mut self) {
        for index in 0..self.run.processes.len() {
            let Some((exit, gone)) = self.run.processes[index].exit else {
                continue;
            };
            let lane = self.run.lanes.len();
            let mut services = Vec::new();
            for (number, service) in self.run.services.iter_mut().enumerate() {
                for start in &mut service.starts {
                    if start.process == index && start.stop == Some(exit) && start.stopper.is_none() {
                        start.stopper = Some(lane);
                        services.push(number);
                    }
                }
            }
            if services.is_empty() {
                continue;
            }
            self.run.lanes.push(Lane {
                process: index,
                thread: u32::MAX,
                name: format!("exit of {}", self.run.processes[index].name),
                begin: exit,
                end: gone,
                ended: End::Seen,
                is_exit: true,
                pieces: Vec::new(),
                slices: vec![Piece {
                    kind: Kind::Stop,
                    begin: exit,
                    end: gone,
                    services,
                }],
                seen_end: None,
            });
        }
    }

    fn note_uses(&mut self) {
        for (service, lane, since) in &self.uses {
            let end = self.run.lanes[*lane].end;
            let service = &mut self.run.services[*service];
            // A test may have asked for the service before it was ready.
            let ready = service.starts.last().and_then(|start| start.ready).unwrap_or(0);
            let since = (*since).max(ready);
            if since <= end {
                service.uses.push((*lane, since, end));
            }
        }
        for service in &mut self.run.services {
            if !service.uses.is_empty() {
                continue;
            }
            // The service is not shared: its starter uses it.
            for start in &service.starts {
                if let Some(ready) = start.ready {
                    let end = start
                        .stop
                        .unwrap_or(start.end)
                        .min(self.run.lanes[start.lane].end);
                    if ready <= end {
                        service.uses.push((start.lane, ready, end));
                    }
                }
            }
        }
    }
}

impl Run {
    /// Moves the origin of all times to `first`.
    fn shift(&mut self, first: u64) {
        let back = |at: &mut u64| *at = at.saturating_sub(first);
        back(&mut self.length);
        for lane in &mut self.lanes {
            back(&mut lane.begin);
            back(&mut lane.end);
            for slice in &mut lane.slices {
                back(&mut slice.begin);
                back(&mut slice.end);
            }
        }
        for service in &mut self.services {
            for start in &mut service.starts {
                back(&mut start.begin);
                back(&mut start.end);
                for at in [
                    &mut start.spawned,
                    &mut start.ready,
                    &mut start.stop,
                    &mut start.died,
                ] {
                    at.iter_mut().for_each(back);
                }
            }
            for (_, begin, end) in &mut service.uses {
                back(begin);
                back(end);
            }
        }
    }

    fn critical_path(&self) -> Vec<Step> {
        let mut path = Vec::new();
        let last = (0..self.lanes.len()).max_by_key(|lane| self.lanes[*lane].end);
        let Some(mut lane) = last else {
            return path;
        };
        let mut at = self.length;
        if self.lanes[lane].end < at {
            path.push(gap(self.lanes[lane].end, at));
            at = self.lanes[lane].end;
        }
        // The lanes already visited at the current value of `at`. Visiting one of them again could
        // loop for ever.
        let mut here: Vec<usize> = Vec::new();
        while at > 0 {
            let Some(piece) = self.lanes[lane].piece_before(at) else {
                here.push(lane);
                let Some(before) = self.lane_before(lane, at, &here) else {
                    path.push(gap(0, at));
                    break;
                };
                let end = self.lanes[before].end;
                if end < at {
                    path.push(gap(end, at));
                    at = end;
                    here.clear();
                }
                lane = before;
                continue;
            };
            here.push(lane);
            let other = self
                .awaited(piece, at)
                .filter(|(other, until)| !here.contains(other) || *until < at);
            let begin = match other {
                Some((_, until)) => until.max(piece.begin),
                None => piece.begin,
            };
            if begin < at {
                here.clear();
                path.push(Step {
                    lane: Some(lane),
                    piece: Piece {
                        begin,
                        end: at,
                        ..piece.clone()
                    },
                });
                at = begin;
            }
            if let Some((other, _)) = other {
                lane = other;
            }
        }
        path.reverse();
        path
    }

    /// The lane that a piece waited for, and the time until which it waited.
    fn awaited(&self, piece: &Piece, at: u64) -> Option<(usize, u64)> {
        let own = *piece.services.first()?;
        let is_in = |end: u64| end > piece.begin && end <= at.saturating_add(LAG);
        match piece.kind {
            Kind::Wait => {
                let starts = self.services[own].starts.iter();
                let start = starts
                    .filter(|start| start.ready.is_some_and(is_in))
                    .max_by_key(|start| start.ready)?;
                Some((start.lane, start.ready?.min(at)))
            }
            Kind::EndpointLock => {
                let wants = |service: &Service| {
                    piece.services.iter().any(|ours| {
                        let ours = &self.services[*ours].endpoints;
                        ours.iter().any(|endpoint| service.endpoints.contains(endpoint))
                    })
                };
                let mut last: Option<(usize, u64)> = None;
                for (index, service) in self.services.iter().enumerate() {
                    if piece.services.contains(&index) || !wants(service) {
                        continue;
                    }
                    for start in &service.starts {
                        if let Some(stopper) = start.stopper.filter(|_| is_in(start.end)) {
                            if last.is_none_or(|(_, end)| start.end >= end) {
                                last = Some((stopper, start.end));
                            }
                        }
                    }
                }
                last.map(|(stopper, end)| (stopper, end.min(at)))
            }
            _ => None,
        }
    }

    /// The last lane that ended before this one began: of the same process if possible, otherwise
    /// of any process.
    fn lane_before(&self, lane: usize, at: u64, not: &[usize]) -> Option<usize> {
        let process = self.lanes[lane].process;
        (0..self.lanes.len())
            .filter(|index| self.lanes[*index].end <= at && !not.contains(index))
            .max_by_key(|index| (self.lanes[*index].process == process, self.lanes[*index].end))
    }
}

fn gap(begin: u64, end: u64) -> Step {
    let piece = Piece {
        kind: Kind::Gap,
        begin,
        end,
        services: Vec::new(),
    };
    Step { lane: None, piece }
}

/// Prefixes of the names that runtimes give to their worker threads.
const WORKERS: [&str; 6] = [
    "tokio-",
    "async-std/",
    "smol-",
    "blocking-",
    "rayon-",
    "mirakuru-",
];

impl Lane {
    /// Whether the lane is a test. Other lanes are the exit of a process, a worker of a runtime, or
    /// an unnamed thread that a test has started.
    pub(crate) fn is_test(&self) -> bool {
        let is_worker = WORKERS.iter().any(|worker| self.name.starts_with(worker));
        !self.is_exit && !is_worker && !self.name.is_empty()
    }

    /// Divides the lane's time into pieces.
    fn divide(&mut self) {
        let mut at = self.end;
        let slices = std::mem::take(&mut self.slices);
        while at > self.begin {
            // If several slices cover the time just before `at`, the one that began first counts.
            let mut covering: Option<&Piece> = None;
            let mut last_end = self.begin;
            for slice in &slices {
                if slice.end < at {
                    last_end = last_end.max(slice.end);
                } else if slice.begin < at && covering.is_none_or(|first| slice.begin < first.begin) {
                    covering = Some(slice);
                }
            }
            let piece = match covering {
                Some(slice) => Piece {
                    begin: slice.begin.max(self.begin),
                    end: at,
                    ..slice.clone()
                },
                None => Piece {
                    kind: Kind::Body,
                    begin: last_end,
                    end: at,
                    services: Vec::new(),
                },
            };
            at = piece.begin;
            self.pieces.push(piece);
        }
        self.pieces.reverse();
    }

    /// The piece just before this time. `None` at the beginning of the lane.
    fn piece_before(&self, at: u64) -> Option<&Piece> {
        let after = self.pieces.partition_point(|piece| piece.begin < at);
        self.pieces[..after].last().filter(|piece| piece.end >= at)
    }
}

/// The name of a test binary without the hash that cargo appends.
fn plain_name(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((plain, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => plain,
        _ => name,
    }
}

#[cfg(test)]
mod tests;
