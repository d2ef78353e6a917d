//! Tests services that need each other, in each form: stacked attributes, structs, statics, plain
//! code and clusters. The file is long because the forms share services and helpers.

#![allow(unnameable_test_items)]

use std::marker::PhantomData;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use mirakuru::{Banner, Executor, ExecutorBuilder, OutputExecutor, Recipe as _, SimpleExecutor, Tcp};

use crate::common::{fixed_port, odd};

/// A service that becomes ready after this many milliseconds.
fn ready_after(milliseconds: u32) -> ExecutorBuilder<Banner> {
    Executor::builder(format!(
        "sleep {}; echo ready; exec sleep 60",
        f64::from(milliseconds) / 1000.0
    ))
    .shell(true)
    .wait_for(Banner::matching("ready"))
}

/// The value of the service's variable `NEEDS`.
fn needs(executor: &Executor<impl mirakuru::Readiness>) -> String {
    executor.envs()["NEEDS".as_ref() as &std::ffi::OsStr]
        .to_string_lossy()
        .into_owned()
}

#[mirakuru::fixture(ready_after(50).name("the database"))]
#[mirakuru::fixture(cmd = "sleep 60", env = ("NEEDS", format!("{}/{}", db.name(), db.pid())))]
#[test]
fn a_fixture_that_stands_above_is_in_scope_below(db: &OutputExecutor, app: &SimpleExecutor) {
    assert_eq!(needs(app), format!("the database/{}", db.pid()));
}

#[mirakuru::fixture(ready_after(0), name = db)]
#[mirakuru::fixture(cmd = "sleep 60", env = ("NEEDS", db.pid().to_string()))]
#[test]
fn a_fixture_without_a_parameter_has_the_name_that_its_attribute_gives(app: &SimpleExecutor) {
    let pid: u32 = needs(app).parse().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
}

/// A service that becomes ready once the recipe of another service has set `SECOND_IS_THERE`.
fn ready_after_the_second() -> ExecutorBuilder<mirakuru::Check> {
    let is_there = |_: &mirakuru::Probe<'_>| Ok(SECOND_IS_THERE.load(SeqCst));
    Executor::builder("sleep 60").wait_for(mirakuru::Check::new("the second is there", is_there))
}

static SECOND_IS_THERE: AtomicBool = AtomicBool::new(false);

fn second_is_there() -> &'static str {
    SECOND_IS_THERE.store(true, SeqCst);
    "quick"
}

#[mirakuru::fixture(ready_after_the_second())]
#[mirakuru::fixture(ready_after(20))]
#[mirakuru::fixture(ready_after(20).env("NEEDS", { let _ = quick; second_is_there() }))]
#[mirakuru::fixture(ready_after(0).env("NEEDS", { let _ = quick; slow.is_running().to_string() }))]
#[test]
fn a_service_starts_when_those_that_it_names_are_ready(
    slow: &Executor<mirakuru::Check>,
    quick: &OutputExecutor,
    second: &OutputExecutor,
    last: &OutputExecutor,
) {
    // The second service did not wait for the slow one, or neither would be ready. The last service
    // waited for both.
    let _ = (slow, quick);
    assert_eq!(
        (needs(second), needs(last)),
        ("quick".to_owned(), "true".to_owned())
    );
}

/// A service that appends its name to the file when it gets the stop signal.
fn notes_its_end(name: &str, file: &Path) -> ExecutorBuilder<Banner> {
    let script = "trap 'echo $0 >> \"$1\"; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    Executor::builder(["sh", "-c", script, name])
        .arg(file)
        .wait_for(Banner::matching("ready"))
}

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("mirakuru-systems-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    fn file(&self) -> std::path::PathBuf {
        self.0.join("ends")
    }

    fn ends(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn who_needs_others_ends_before_them() {
    fn run(file: &Path) {
        let file = file.to_owned();
        FILE.set(file);
        #[mirakuru::fixture(notes_its_end("database", &FILE.take()), name = db)]
        #[mirakuru::fixture(notes_its_end("server", &file_of(db)), name = server)]
        #[mirakuru::fixture(notes_its_end("worker", &file_of(server)))]
        #[test]
        fn test(worker: &OutputExecutor) {
            assert!(worker.is_running());
        }
        test();
    }
    let scratch = Scratch::new("ends");
    run(&scratch.file());
    assert_eq!(scratch.ends(), "worker\nserver\ndatabase\n");
}

thread_local! {
    static FILE: std::cell::RefCell<std::path::PathBuf> = std::cell::RefCell::default();
    static FIXED: std::cell::Cell<u16> = const { std::cell::Cell::new(0) };
}

fn file_of(executor: &OutputExecutor) -> std::path::PathBuf {
    executor.command().rsplit(' ').next().unwrap().into()
}

/// A field that no test reads causes no warning about dead code.
#[deny(dead_code)]
#[mirakuru::fixture]
struct Unseen {
    #[fixture(cmd = "sleep 60")]
    seen: SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    unseen: SimpleExecutor,
}

#[mirakuru::fixture(Unseen)]
#[test]
fn a_field_that_no_test_reads(unseen: Unseen) {
    assert!(unseen.seen.is_running());
}

/// Three services: the server needs the other two.
#[mirakuru::fixture]
struct Shop {
    #[fixture(ready_after(20).name("db"))]
    db: OutputExecutor,
    #[fixture(cmd = "sleep 60", name = "cache")]
    cache: SimpleExecutor,
    #[fixture(cmd = "sleep 60", env = ("NEEDS", format!("{} {}", db.pid(), cache.pid())))]
    server: SimpleExecutor,
}

impl Shop {
    #[track_caller]
    fn check(&self) {
        assert_eq!(
            needs(&self.server),
            format!("{} {}", self.db.pid(), self.cache.pid())
        );
    }
}

#[mirakuru::fixture(Shop)]
#[test]
fn a_struct_is_a_system(mut shop: Shop) {
    shop.check();
    shop.cache.stopped(|| ()).unwrap();
    let Shop { db, cache, server } = shop;
    drop((server, cache, db));
}

#[mirakuru::fixture(Shop, name = shop)]
#[mirakuru::fixture(cmd = "sleep 60", env = ("NEEDS", shop.server.pid().to_string()))]
#[test]
fn a_system_is_in_scope_below(shop: &Shop, probe: &SimpleExecutor) {
    assert_eq!(needs(probe), shop.server.pid().to_string());
}

mod nested {
    use super::*;

    /// A system as a field of another system. It needs one field, and another field needs it.
    #[mirakuru::fixture]
    pub(super) struct Mall {
        #[fixture(cmd = "sleep 60", name = "street")]
        street: SimpleExecutor,
        #[fixture({ let _ = street; Shop })]
        shop: Shop,
        #[fixture(cmd = "sleep 60", env = ("NEEDS", shop.server.pid().to_string()))]
        pub(super) guard: SimpleExecutor,
    }

    impl Mall {
        pub(super) fn check(&self) {
            self.shop.check();
            assert!(self.street.is_running());
            assert_eq!(needs(&self.guard), self.shop.server.pid().to_string());
        }
    }
}

#[mirakuru::fixture(nested::Mall)]
#[test]
fn a_system_in_a_system(mall: &nested::Mall) {
    assert!(mall.guard.is_running());
    mall.check();
}

#[mirakuru::fixture]
struct Keyword {
    #[fixture(cmd = "sleep 60")]
    r#type: SimpleExecutor,
    #[fixture(cmd = "sleep 60", env = ("NEEDS", r#type.pid().to_string()))]
    server: SimpleExecutor,
}

#[mirakuru::fixture(Keyword)]
#[test]
fn a_field_may_have_the_name_of_a_keyword(system: Keyword) {
    assert!(system.r#type.is_running() && system.server.is_running());
}

/// A function with the same name as a service below.
fn last(number: u32) -> String {
    number.to_string()
}

mod module {
    pub(super) fn first() -> &'static str {
        "first"
    }
}

macro_rules! text {
    ($($token:tt)*) => { stringify!($($token)*) };
}

/// In these expressions, other items have the same names as services.
#[mirakuru::fixture]
struct Names {
    #[fixture(
        cmd = "sleep 60",
        env = ("NEEDS", { let last = 1; format!("{last}") + module::first() }),
        args = [1, 2].map(last),
        arg = Some(1).map_or_else(String::new, |last| last.to_string()),
        arg = match Some(1) { Some(last) if last > 0 => last.to_string(), _ => String::new() },
        arg = if let Some(last) = Some(1) { last.to_string() } else { "no".to_owned() },
        arg = { let mut all = String::new(); for last in 1..3 { all += &last.to_string(); } all },
        arg = { fn last() -> u32 { 1 } last().to_string() },
        arg = text!("{last}").len().to_string(),
    )]
    first: SimpleExecutor,
    #[fixture(ready_after(20))]
    system: OutputExecutor,
    #[fixture(cmd = "sleep 60", env = ("NEEDS", format!("{system:?}; {first:?}")))]
    last: SimpleExecutor,
}

#[mirakuru::fixture(Names)]
#[test]
fn names_have_the_scope_of_rust(names: &Names) {
    assert_eq!(needs(&names.first), "1first");
    let Names { first, system, last } = names;
    assert_eq!(needs(last), format!("{system:?}; {first:?}"));
}

#[mirakuru::fixture(ready_after(20), name = r#type)]
#[mirakuru::fixture(cmd = "sleep 60", env = ("NEEDS", format!("{type:?}, {:>width$}", 1, width = 3)))]
#[test]
fn a_format_string_names_a_fixture(app: &SimpleExecutor) {
    assert!(needs(app).ends_with(",   1"));
}

#[mirakuru::fixture]
struct Farm<const N: usize, R: mirakuru::Readiness + Default + Clone> {
    #[fixture(Executor::builder("sleep 60").env("NEEDS", N.to_string()).wait_for(R::default()))]
    worker: Executor<R>,
}

#[derive(Clone, Default)]
struct Now;

impl mirakuru::Readiness for Now {
    fn describe(&self) -> String {
        "it was looked at".to_owned()
    }
    fn probe(&mut self, _: &mirakuru::Probe<'_>) -> std::io::Result<bool> {
        Ok(true)
    }
}

#[mirakuru::fixture(Farm::<7, Now>)]
#[mirakuru::fixture(Farm)]
#[test]
fn a_generic_system(given: &Farm<7, Now>, inferred: Farm<8, Now>) {
    assert_eq!(needs(&given.worker), "7");
    assert_eq!(needs(&inferred.worker), "8");
}

/// The imported macro has the same name as the attribute of the fields.
mod conditions {
    use mirakuru::fixture;

    use super::*;

    #[fixture]
    pub(super) struct Conditional {
        /// The database on Unix.
        #[cfg(unix)]
        #[fixture(ready_after(1).name("unix"))]
        #[allow(dead_code)]
        pub(super) db: OutputExecutor,
        #[fixture(NoSuchRecipe)]
        #[cfg(not(unix))]
        db: NoSuchType,
        #[cfg_attr(not(unix), fixture(NoSuchRecipe))]
        #[cfg_attr(unix, doc = "It needs the one above.", mirakuru::fixture(
            cmd = "sleep 60",
            env = ("NEEDS", db.name()),
        ))]
        pub(super) server: SimpleExecutor,
    }

    #[cfg(not(unix))]
    #[fixture]
    struct LeftOut {
        #[fixture(NoSuchRecipe)]
        db: NoSuchType,
    }

    #[fixture]
    #[cfg(not(unix))]
    struct LeftOutBelow {
        #[fixture(NoSuchRecipe)]
        db: NoSuchType,
    }

    #[fixture]
    pub(super) struct Nothing {
        #[cfg(not(unix))]
        #[fixture(NoSuchRecipe)]
        db: NoSuchType,
    }
}

#[mirakuru::fixture(conditions::Conditional)]
#[mirakuru::fixture(conditions::Nothing, name = _)]
#[test]
fn a_field_may_have_a_condition(system: conditions::Conditional) {
    assert_eq!(needs(&system.server), "unix");
    assert!(system.db.is_running());
}

/// Lint levels of a struct also apply to its recipe, and the recipe itself causes no warning.
#[deny(dead_code, deprecated, non_upper_case_globals, non_snake_case)]
mod lints {
    use super::*;

    #[allow(dead_code, non_camel_case_types)]
    #[mirakuru::fixture]
    struct unused<T> {
        #[fixture(cmd = "sleep 60")]
        worker: SimpleExecutor,
        of: PhantomData<T>,
    }

    #[allow(dead_code)]
    #[deprecated]
    #[mirakuru::fixture]
    struct Old {
        #[deprecated]
        #[fixture(cmd = "sleep 60")]
        worker: SimpleExecutor,
    }
}

#[mirakuru::fixture]
struct Marked<'a, T> {
    #[fixture(cmd = "sleep 60")]
    worker: SimpleExecutor,
    by: PhantomData<T>,
    of: std::marker::PhantomData<&'a T>,
}

#[mirakuru::fixture(Marked::<u8>)]
#[mirakuru::fixture(Marked)]
#[test]
fn a_parameter_that_no_service_uses(given: Marked<'_, u8>, inferred: &Marked<'static, u16>) {
    assert!(given.worker.is_running() && inferred.worker.is_running());
    let _ = (given.by, given.of, inferred.by, inferred.of);
}

/// The attribute must not mistake a struct whose name is in capitals for a static.
#[mirakuru::fixture]
struct KV<K> {
    #[fixture(cmd = "sleep 60")]
    worker: SimpleExecutor,
    of: PhantomData<K>,
}

#[mirakuru::fixture(KV::<u8>)]
#[mirakuru::fixture(KV)]
#[test]
fn a_generic_struct_with_a_name_in_capital_letters(given: KV<u8>, inferred: &KV<u16>) {
    assert!(given.worker.is_running() && inferred.worker.is_running());
}

mod with_one_letter {
    use std::marker::PhantomData;

    #[mirakuru::fixture]
    pub(super) struct G<K> {
        #[fixture(cmd = "sleep 60")]
        pub(super) worker: mirakuru::SimpleExecutor,
        of: PhantomData<K>,
    }
}

#[mirakuru::fixture(with_one_letter::G::<u8>)]
#[test]
fn a_generic_struct_with_one_letter_in_a_module(system: with_one_letter::G<u8>) {
    assert!(system.worker.is_running());
}

mod without_a_prelude {
    #![no_implicit_prelude]

    #[::mirakuru::fixture]
    pub(super) struct Pair {
        #[fixture(cmd = "sleep 60")]
        pub(super) db: ::mirakuru::SimpleExecutor,
        #[fixture(cmd = "sleep 60", env = ("NEEDS", db.name()))]
        pub(super) server: ::mirakuru::SimpleExecutor,
    }
}

#[mirakuru::fixture(without_a_prelude::Pair)]
#[test]
fn a_system_in_a_module_without_a_prelude(pair: without_a_prelude::Pair) {
    assert_eq!(needs(&pair.server), pair.db.name());
}

#[mirakuru::fixture]
struct Many {
    #[fixture(cmd = "sleep 60")]
    a: SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    b: SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    c: SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    d: SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    e: SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    f: SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    g: SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    h: SimpleExecutor,
    #[fixture(cmd = "sleep 60")]
    i: SimpleExecutor,
    #[fixture(cmd = "sleep 60", env = ("NEEDS", format!("{:?}", [
        a.pid(), b.pid(), c.pid(), d.pid(), e.pid(), f.pid(), g.pid(), h.pid(), i.pid(),
    ])))]
    last: SimpleExecutor,
}

#[mirakuru::fixture(Many)]
#[test]
fn a_service_may_need_more_than_eight_others(many: Many) {
    let Many {
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        i,
        last,
    } = &many;
    let pids = [a, b, c, d, e, f, g, h, i].map(|it| it.pid());
    assert_eq!(needs(last), format!("{pids:?}"));
}

#[mirakuru::fixture(Shop, scope = "process")]
static PROCESS: Shop;

#[mirakuru::fixture(Shop)]
static RUN: Shop;

#[test]
fn a_system_in_a_static() {
    PROCESS.check();
    RUN.check();
    assert_ne!(PROCESS.db.pid(), RUN.db.pid());
}

#[mirakuru::fixture(PROCESS)]
#[mirakuru::fixture(RUN, name = run)]
#[mirakuru::fixture(cmd = "sleep 60", env = ("NEEDS", format!("{} {}", process.db.pid(), run.db.pid())))]
#[test]
fn a_static_is_named_in_an_attribute(process: &Shop, run: &'static Shop, needy: &SimpleExecutor) {
    assert!(std::ptr::eq(process, mirakuru::Shared::get(&PROCESS)));
    assert_eq!(needs(needy), format!("{} {}", process.db.pid(), run.db.pid()));
}

#[mirakuru::fixture(Shop)]
fn shop() -> Shop;

#[mirakuru::fixture(Shop)]
fn database(shop: Shop) -> OutputExecutor {
    shop.db
}

#[mirakuru::fixture(RUN)]
fn pid_of_the_run(shop: &'static Shop) -> u32 {
    shop.db.pid()
}

#[mirakuru::fixture(Shop)]
fn shared() -> &'static Shop;

#[mirakuru::fixture(RUN)]
fn in_static() -> &'static Shop;

#[rstest::rstest]
fn systems_are_fixtures_of_rstest(
    shop: Shop,
    database: OutputExecutor,
    pid_of_the_run: u32,
    shared: &'static Shop,
    in_static: &'static Shop,
) {
    shop.check();
    shared.check();
    assert!(std::ptr::eq(in_static, mirakuru::Shared::get(&RUN)));
    assert!(database.is_running());
    assert_eq!(pid_of_the_run, RUN.db.pid());
}

#[test]
fn a_system_is_a_recipe_like_any_other() {
    use mirakuru::Recipe as _;
    Shop.start().unwrap().check();
    let (shop, sleeper) = mirakuru::start_all((Shop, Executor::builder("sleep 60"))).unwrap();
    shop.check();
    assert!(sleeper.is_running());
    for shop in mirakuru::start_all(vec![Shop; 2]).unwrap() {
        shop.check();
    }
}

#[test]
fn executors_that_are_built_are_started_together() {
    let database = ready_after(0).env("PORT", "{port}").build().unwrap();
    let server = Executor::builder("sleep 60").env("NEEDS", database.port().to_string());
    let mut server = server.build().unwrap();
    let (database, server, sleeper) =
        mirakuru::start_all((database, &mut server, Executor::builder("sleep 60"))).unwrap();
    assert!(database.is_running() && sleeper.is_running());
    assert_eq!(needs(server), database.port().to_string());
    server.stop().unwrap();
    let two = [
        Executor::builder("sleep 60").build().unwrap(),
        Executor::builder("sleep 60").build().unwrap(),
    ];
    assert!(mirakuru::start_all(two).unwrap().iter().all(Executor::is_running));
}

#[test]
fn a_start_that_fails_names_the_field_and_says_how_far_the_others_were() {
    #[mirakuru::fixture]
    struct Broken {
        #[fixture(cmd = "sleep 60")]
        fine: SimpleExecutor,
        #[fixture(Executor::builder("exit 3").shell(true).wait_for(Banner::matching(fine.name())))]
        fails: OutputExecutor,
        #[fixture(cmd = "sleep 60", name = fails.name())]
        last: SimpleExecutor,
    }

    #[mirakuru::fixture(Broken)]
    #[test]
    fn test(system: &Broken) {
        let _ = (&system.fine, &system.fails, &system.last);
    }

    let payload = std::panic::catch_unwind(test).unwrap_err();
    let message = payload.downcast_ref::<String>().unwrap();
    assert!(
        message.starts_with("the fixture `system.fails` could not be started"),
        "{message}"
    );
    assert!(message.contains("`system.fine` was ready"), "{message}");
    assert!(message.contains("`system.last` was not started"), "{message}");
}

#[test]
fn fields_end_in_the_reverse_order_of_need() {
    #[mirakuru::fixture]
    struct Noting {
        #[fixture(notes_its_end("database", &FILE.with_borrow(Clone::clone)))]
        database: OutputExecutor,
        #[fixture(notes_its_end("server", &file_of(database)))]
        server: OutputExecutor,
    }
    let scratch = Scratch::new("fields");
    FILE.set(scratch.file());
    let system: Noting = mirakuru::Recipe::start(Noting).unwrap();
    assert!(system.server.is_running() && system.database.is_running());
    drop(system);
    assert_eq!(scratch.ends(), "server\ndatabase\n");
}

mod clusters {
    use std::collections::HashSet;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use mirakuru::{Check, Cluster, Error, Recipe, Tcp, TcpExecutor, cluster};

    /// Nodes that listen, and know the ports of their peers.
    fn nodes() -> impl Recipe<Handle = Cluster<TcpExecutor>> {
        cluster(3, |node| {
            Executor::builder([crate::common::ODD, "--listen", "127.0.0.1:{port}"])
                .env("OTHER", "{port:other}")
                .env(
                    "NEEDS",
                    node.peers()
                        .map(|peer| format!("{}/{}", peer.port(), peer.port_named("other")))
                        .collect::<Vec<_>>()
                        .join(" "),
                )
                .wait_for(Tcp::addr("127.0.0.1:{port}"))
        })
    }

    #[test]
    fn the_last_node_ends_first() {
        let scratch = Scratch::new("order-of-nodes");
        let file = scratch.0.join("ended");
        let names = ["primary", "first-replica", "second-replica"];
        let nodes = cluster(3, |node| notes_its_end(names[node.index()], &file));
        drop(nodes.start().unwrap());
        let ended = std::fs::read_to_string(&file).unwrap();
        assert_eq!(ended, "second-replica\nfirst-replica\nprimary\n");
    }

    #[mirakuru::fixture(nodes())]
    #[test]
    fn nodes_know_each_others_ports_before_they_start(mut nodes: Cluster<TcpExecutor>) {
        for node in &nodes {
            let peers = nodes.iter().filter(|peer| peer.pid() != node.pid());
            let peers: Vec<String> = peers
                .map(|peer| format!("{}/{}", peer.port(), peer.port_named("other")))
                .collect();
            assert_eq!(needs(node), peers.join(" "));
        }
        let ports: HashSet<u16> = nodes.iter().map(|node| node.port()).collect();
        assert_eq!((nodes.len(), ports.len()), (3, 3));

        let port = nodes[1].port();
        nodes[1].kill().unwrap();
        assert!(nodes[0].is_running() && !nodes[1].is_running() && nodes[2].is_running());
        nodes[1].start().unwrap();
        assert_eq!(nodes[1].port(), port);
        mirakuru::stop_all(&mut nodes).unwrap();
        assert!(nodes.iter().all(|node| !node.is_running()));
        assert_eq!(nodes.into_iter().count(), 3);
    }

    #[test]
    fn a_node_has_its_number_its_name_and_its_directory() {
        let recipe = cluster(2, |node| {
            let peers: Vec<String> = node
                .peers()
                .map(|peer| peer.dir().display().to_string())
                .collect();
            assert_eq!(node.nodes().nth(node.index()).unwrap().port(), node.port());
            Executor::builder("sleep 60")
                .env(
                    "NEEDS",
                    format!("{} {{name}} {{dir}} {}", node.index(), peers.join(" ")),
                )
                // The recipe uses the number of the port, without a placeholder.
                .env("PORT", node.port().to_string())
        });
        let nodes = recipe.clone().start().unwrap();
        for (index, node) in nodes.iter().enumerate() {
            let (own, peer) = (node.dir(), nodes[1 - index].dir());
            assert!(own.is_dir());
            let expected = format!("{index} node-{index} {} {}", own.display(), peer.display());
            assert_eq!(needs(node), expected);
            assert_eq!(
                node.envs()[std::ffi::OsStr::new("PORT")],
                *node.port().to_string()
            );
        }
        assert_ne!(recipe.start().unwrap()[0].dir(), nodes[0].dir());
    }

    #[test]
    fn it_is_ready_when_the_condition_holds_for_every_node() {
        let recipe = cluster(3, |node| {
            let seconds = f64::from(u32::try_from(node.index()).unwrap()) / 10.0;
            Executor::builder(format!("sleep {seconds}; echo joined; exec sleep 60")).shell(true)
        });
        let joined = Check::new("it had joined", |node| {
            Ok(node.logs().stdout().contains("joined"))
        });
        let nodes = recipe.clone().ready_when(joined).start().unwrap();
        for node in &nodes {
            assert_eq!(node.logs().stdout(), "joined\n");
        }

        let never = recipe
            .ready_when(Check::new("there was a leader", |_| Ok(false)))
            .timeout(std::time::Duration::from_millis(300))
            .start();
        let Err(Error::Timeout {
            awaited,
            elapsed,
            evidence,
            ..
        }) = never
        else {
            panic!("it was ready");
        };
        assert_eq!(awaited, "there was a leader");
        assert!(elapsed.as_millis() >= 300, "{elapsed:?}");
        assert_eq!(evidence.system.len(), 3, "{:?}", evidence.system);
        let probe = evidence.last_probe.unwrap();
        assert!(
            probe.starts_with("of `node-0`: the check returned false, "),
            "{probe}"
        );
    }

    #[test]
    fn a_node_that_fails_is_named_and_the_others_are_told_of() {
        let recipe = cluster(3, |node| match node.index() {
            1 => Executor::builder("exit 3")
                .shell(true)
                .wait_for(Banner::matching("never")),
            _ => ready_after(0),
        });
        let Err(error) = recipe.start() else {
            panic!("it started")
        };
        assert!(matches!(error, Error::Exited { .. }), "{error}");
        let report = error.to_string();
        assert!(report.contains("`node-1` failed"), "{report}");
        for other in ["`node-0` was", "`node-2` was"] {
            assert!(report.contains(other), "{report}");
        }
    }

    /// Threads that take and release free TCP and UDP ports until this value is dropped.
    struct Storm(Arc<AtomicBool>, Vec<thread::JoinHandle<()>>);

    impl Storm {
        fn begin() -> Storm {
            let is_over = Arc::new(AtomicBool::new(false));
            let storm = |is_over: Arc<AtomicBool>| {
                while !is_over.load(Ordering::Relaxed) {
                    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                    let _udp = UdpSocket::bind("127.0.0.1:0").unwrap();
                    let _stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    thread::sleep(Duration::from_millis(1));
                }
            };
            let begin = |_| {
                thread::spawn({
                    let is_over = Arc::clone(&is_over);
                    move || storm(is_over)
                })
            };
            let threads = (0..4).map(begin).collect();
            Storm(is_over, threads)
        }
    }

    impl Drop for Storm {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
            self.1.drain(..).for_each(|thread| thread.join().unwrap());
        }
    }

    /// `MIRAKURU_CLUSTER_STARTS` sets the number of starts; 10 is the default.
    #[test]
    fn clusters_start_beside_a_storm_of_port_users() {
        let starts = std::env::var("MIRAKURU_CLUSTER_STARTS").map_or(10, |starts| starts.parse().unwrap());
        let _storm = Storm::begin();
        for round in 0..starts {
            let nodes = nodes()
                .start()
                .unwrap_or_else(|error| panic!("start {round}: {error}"));
            for node in &nodes {
                // The service does not use this port, so the test can bind it for UDP.
                UdpSocket::bind(("127.0.0.1", node.port_named("other"))).unwrap();
            }
        }
    }

    /// A system of a cluster and a client that knows the ports of all nodes.
    #[mirakuru::fixture]
    struct Queue {
        #[fixture(nodes())]
        nodes: Cluster<TcpExecutor>,
        #[fixture(cmd = "sleep \
            60", env = ("NEEDS", nodes.iter().map(|node| node.port().to_string()).collect::<String>()))]
        client: SimpleExecutor,
    }

    #[mirakuru::fixture(Queue)]
    #[test]
    fn a_cluster_in_a_system(queue: &Queue) {
        let ports: String = queue.nodes.iter().map(|node| node.port().to_string()).collect();
        assert_eq!(needs(&queue.client), ports);
    }

    #[mirakuru::fixture(nodes())]
    static SHARED: Cluster<TcpExecutor>;

    #[mirakuru::fixture(SHARED)]
    #[test]
    fn a_cluster_in_a_static(nodes: &Cluster<TcpExecutor>) {
        assert!(nodes.iter().all(|node| node.is_running()));
    }
}

/// A node that exits with status 3 after it has become ready.
fn dies_later() -> ExecutorBuilder<Banner> {
    Executor::builder("echo ready; sleep 0.3; echo its last words; exit 3")
        .shell(true)
        .wait_for(Banner::matching("ready"))
}

#[test]
fn a_node_that_dies_while_its_cluster_forms_is_noticed_at_once() {
    for dying in 0..3 {
        let nodes = mirakuru::cluster(3, move |node| match node.index() == dying {
            true => dies_later(),
            false => ready_after(0),
        });
        let began = Instant::now();
        let never = nodes.ready_when(mirakuru::Check::new("it never holds", |_| Ok(false)));
        let error = never.timeout(Duration::from_secs(300)).start().unwrap_err();
        assert!(
            began.elapsed() < Duration::from_secs(100),
            "{:?}",
            began.elapsed()
        );
        let mirakuru::Error::Exited { status, evidence, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(status.code(), Some(3), "{error}");
        assert_eq!(evidence.tail.last().unwrap(), "its last words", "{error}");
        let state = |node| if node == dying { "failed" } else { "was ready" };
        let states = (0..3).map(|node| format!("`node-{node}` {}", state(node)));
        assert_eq!(evidence.system, states.collect::<Vec<_>>(), "{error}");
    }
}

#[test]
fn a_cluster_that_does_not_form_in_time_says_how_far_each_node_was() {
    let nodes = mirakuru::cluster(2, |_| ready_after(0));
    let never = nodes.ready_when(mirakuru::Check::new("it never holds", |_| Ok(false)));
    let error = never.timeout(Duration::from_millis(100)).start().unwrap_err();
    let mirakuru::Error::Timeout { evidence, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(
        evidence.system,
        ["`node-0` was ready", "`node-1` was ready"],
        "{error}"
    );
}

#[test]
fn a_cluster_has_at_least_one_node() {
    let plain = mirakuru::cluster(0, |_| ready_after(0));
    let waits = plain
        .clone()
        .ready_when(mirakuru::Check::new("it holds", |_| Ok(true)));
    let expected = "failed to start the cluster: its size is 0, but a cluster needs at least one node";
    for nodes in [plain, waits] {
        assert_eq!(nodes.start().unwrap_err().to_string(), expected);
    }
}

/// A recipe whose program does not exist.
fn missing_program() -> ExecutorBuilder<Banner> {
    ready_after(0).shell(false).program("no-such-program-of-mirakuru")
}

#[test]
fn a_missing_program_of_a_system_names_the_service_and_the_others() {
    let nodes = mirakuru::cluster(3, |node| match node.index() {
        1 => missing_program(),
        _ => ready_after(0),
    });
    let text = nodes.start().unwrap_err().to_string();
    for line in ["`node-0` was ", "`node-1` failed\n", "`node-2` was "] {
        assert!(text.contains(&format!("system:     {line}")), "{text}");
    }
    // In a list, a service is named by its position, and by its name if the recipe sets one.
    let error = mirakuru::start_all((ready_after(0).name("db"), missing_program(), ready_after(0)));
    let text = error.unwrap_err().to_string();
    for line in [
        "`db` (1 of 3) was ",
        "`no-such-program-of-mirakuru` (2 of 3) failed\n",
    ] {
        assert!(text.contains(&format!("system:     {line}")), "{text}");
    }
    let wrong = vec![ready_after(0), ready_after(0).env("X", "{nope}")];
    let text = mirakuru::start_all(wrong).unwrap_err().to_string();
    assert!(text.contains("system:     service 2 of 2 failed"), "{text}");
}

/// A server that listens on this port.
fn on(port: u16) -> ExecutorBuilder<Tcp> {
    odd(["--listen", &format!("127.0.0.1:{port}")]).wait_for(Tcp::port(port))
}

/// Asserts that the error says that a wait would never end, and gives this remedy.
#[track_caller]
fn assert_endless(text: &str, port: u16, remedy: &str) {
    let wanted = format!("two services of this test or test process need port {port}, so");
    assert!(text.contains(&wanted), "{text}");
    assert!(text.contains(&format!("hint:       {remedy}")), "{text}");
    assert_eq!(
        text.matches(&format!("port {port} is already in use")).count(),
        1,
        "{text}"
    );
    for wrong in ["queue", "of another test"] {
        assert!(!text.contains(wrong), "{text}");
    }
}

#[test]
fn nodes_of_a_cluster_with_one_fixed_port_are_refused() {
    let port = fixed_port();
    let remedy = "the nodes of a cluster cannot share a port or path: leave it out";
    for queue in [false, true] {
        let nodes = mirakuru::cluster(3, |_| on(port).queue(queue));
        assert_endless(&nodes.start().unwrap_err().to_string(), port, remedy);
    }
    // The attribute takes the locks of all nodes at once.
    FIXED.set(port);
    let payload = std::panic::catch_unwind(|| {
        #[mirakuru::fixture(mirakuru::cluster(2, |_| on(FIXED.get())))]
        #[test]
        fn test(nodes: mirakuru::Cluster<mirakuru::TcpExecutor>) {
            let _ = nodes;
        }
        test();
    });
    let payload = payload.unwrap_err();
    assert_endless(payload.downcast_ref::<String>().unwrap(), port, remedy);
}

#[test]
fn two_services_of_a_test_with_one_fixed_port_are_refused() {
    let port = fixed_port();
    let remedy = "share one service, or give each a port or path of its own";
    let error = mirakuru::start_all((on(port), on(port))).unwrap_err();
    assert_endless(&error.to_string(), port, remedy);
    let _first = on(port).start().unwrap();
    for queue in [false, true] {
        let error = on(port).queue(queue).start().unwrap_err();
        assert_endless(&error.to_string(), port, remedy);
    }
}
