//! [`cluster`]: several services of one kind whose recipes can use each other's ports and
//! directories.

use std::any::type_name;
use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirakuru_core::__private::{Identity, Run, SlotState, StartPermit, scaled};
use mirakuru_core::{Check, Error, Executor, ExecutorBuilder, NoWait};

use crate::recipe::Recipe;
use crate::start::{ClusterMember, Single};
use crate::system::{Joining, Reach, Slot, System, several};

/// How long to wait for all nodes of a cluster to end after its last user has left.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Creates a recipe for `size` services that start together. The closure returns the recipe of each
/// node, and can use the ports and directories of all nodes.
///
/// ```
/// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
/// use mirakuru::{Cluster, Executor, Recipe, SimpleExecutor, cluster};
///
/// let recipe = cluster(3, |node| {
///     let peers: Vec<String> = node.peers().map(|peer| peer.port().to_string()).collect();
///     Executor::builder("sleep 60")
///         .env("LISTEN", "127.0.0.1:{port}")
///         .env("PEERS", peers.join(","))
/// });
/// let mut nodes: Cluster<SimpleExecutor> = recipe.start()?;
/// assert_ne!(nodes[0].port(), nodes[1].port());
/// nodes[0].kill()?;
/// assert!(nodes[1].is_running());
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// The closure may return any recipe of a single service: a builder, a preset, or a type of your
/// own. It may be called more than once for a node, so it must have no side effects. In a recipe,
/// `{name}` stands for the node's name, which is [`Node::name`] by default.
///
/// A recipe of several services, such as a system or another cluster, cannot be a node. A test that
/// uses one as a node does not compile:
///
/// ```compile_fail
/// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
/// use mirakuru::{Executor, cluster};
///
/// let _ = cluster(3, |_| cluster(2, |_| Executor::builder("sleep 60")));
/// ```
///
/// A cluster is ready when all its nodes are ready and all conditions of
/// [`ready_when`](ClusterRecipe::ready_when) hold. If a cluster is in a `static`, the whole run
/// shares it, as with any other fixture. The ports of the nodes never change: if a port is in use,
/// the start fails.
pub fn cluster<R: Recipe, F: Fn(&Node) -> R>(size: usize, node: F) -> ClusterRecipe<R, F> {
    const {
        assert!(
            !R::__SEVERAL,
            "a node of a cluster is one service, but this recipe starts several: make a cluster for each"
        );
    }
    ClusterRecipe {
        size,
        node,
        order: None,
        checks: Vec::new(),
        timeout: Duration::from_secs(60),
        recipe: PhantomData,
    }
}

/// A recipe for a cluster, created by [`cluster`].
#[must_use = "a recipe starts nothing by itself"]
pub struct ClusterRecipe<R, F> {
    size: usize,
    node: F,
    /// The condition that a node must meet before the next one is launched. The node itself need
    /// not be ready.
    order: Option<Check>,
    checks: Vec<Check>,
    timeout: Duration,
    recipe: PhantomData<fn() -> R>,
}

impl<R, F> ClusterRecipe<R, F> {
    /// Launches each node once the previous node meets the condition, even if the previous node is
    /// still starting.
    #[cfg(feature = "presets")]
    pub(crate) fn launched_in_turn(mut self, check: Check) -> ClusterRecipe<R, F> {
        self.order = Some(check);
        self
    }

    /// Adds a condition for the whole cluster, for example that there is a leader or that all nodes
    /// have joined. The condition is checked once all nodes are ready, with the
    /// [`Probe`](mirakuru_core::Probe) of each node, and must hold for every node.
    ///
    /// ```
    /// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
    /// use mirakuru::{Check, Executor, Recipe, cluster};
    ///
    /// let nodes = cluster(2, |node| {
    ///     let peers = node.peers().count();
    ///     Executor::builder(format!("sleep 0.1; echo '{peers} peers'; exec sleep 60")).shell(true)
    /// })
    /// .ready_when(Check::new("it knew its peers", |node| {
    ///     Ok(node.logs().stdout().contains("1 peers"))
    /// }))
    /// .start()?;
    /// assert_eq!(nodes.len(), 2);
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    pub fn ready_when(mut self, check: Check) -> ClusterRecipe<R, F> {
        self.checks.push(check);
        self
    }

    /// Sets how long the conditions of [`ready_when`](ClusterRecipe::ready_when) may take once all
    /// nodes are ready. The default is 60 seconds.
    pub fn timeout(mut self, timeout: Duration) -> ClusterRecipe<R, F> {
        self.timeout = timeout;
        self
    }
}

impl<R, F: Clone> Clone for ClusterRecipe<R, F> {
    fn clone(&self) -> ClusterRecipe<R, F> {
        ClusterRecipe {
            size: self.size,
            node: self.node.clone(),
            order: self.order.clone(),
            checks: self.checks.clone(),
            timeout: self.timeout,
            recipe: PhantomData,
        }
    }
}

impl<R, F> fmt::Debug for ClusterRecipe<R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterRecipe")
            .field("size", &self.size)
            .field("checks", &self.checks)
            .finish_non_exhaustive()
    }
}

/// A node of a cluster before it starts. Its index, its ports and its directory are already known.
/// Cheap to clone.
#[derive(Clone)]
pub struct Node {
    all: Arc<[Identity]>,
    index: usize,
}

impl Node {
    fn all(identities: Vec<Identity>) -> Vec<Node> {
        let all: Arc<[Identity]> = identities.into();
        let mut nodes = Vec::new();
        for index in 0..all.len() {
            let all = Arc::clone(&all);
            nodes.push(Node { all, index });
        }
        nodes
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.all[self.index]
    }

    /// The index of the node, starting at 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The name of the node: `node-0`, `node-1`, ...
    #[must_use]
    pub fn name(&self) -> &str {
        self.identity().name()
    }

    /// The port number that `{port}` stands for in the node's recipe.
    ///
    /// # Panics
    ///
    /// If the system has no free port.
    #[must_use]
    #[track_caller]
    pub fn port(&self) -> u16 {
        self.port_named("")
    }

    /// The port number that `{port:NAME}` stands for in the node's recipe.
    ///
    /// # Panics
    ///
    /// If the system has no free port.
    #[must_use]
    #[track_caller]
    pub fn port_named(&self, name: &str) -> u16 {
        match self.identity().port(name) {
            Ok(port) => port,
            Err(error) => panic!("{error}"),
        }
    }

    /// The private directory of the node, which `{dir}` stands for in its recipe.
    ///
    /// # Panics
    ///
    /// If the directory cannot be created.
    #[must_use]
    #[track_caller]
    pub fn dir(&self) -> PathBuf {
        match self.identity().dir() {
            Ok(dir) => dir,
            Err(error) => panic!("{error}"),
        }
    }

    /// The other nodes.
    pub fn peers(&self) -> impl Iterator<Item = Node> + use<> {
        let own = self.index;
        self.nodes().filter(move |node| node.index != own)
    }

    /// All nodes, including this one.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        let all = Arc::clone(&self.all);
        (0..all.len()).map(move |index| Node {
            all: Arc::clone(&all),
            index,
        })
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&self.index).finish()
    }
}

/// The running nodes of a cluster. Dereferences to a slice of their handles. Dropping it stops the
/// nodes, the last one first.
#[derive(Debug)]
pub struct Cluster<H> {
    nodes: Vec<H>,
}

impl<H> Drop for Cluster<H> {
    /// The last node is stopped first, because replicas come after their primary.
    fn drop(&mut self) {
        while self.nodes.pop().is_some() {}
    }
}

impl<H> Deref for Cluster<H> {
    type Target = [H];

    fn deref(&self) -> &[H] {
        &self.nodes
    }
}

impl<H> DerefMut for Cluster<H> {
    fn deref_mut(&mut self) -> &mut [H] {
        &mut self.nodes
    }
}

impl<H> IntoIterator for Cluster<H> {
    type Item = H;
    type IntoIter = std::vec::IntoIter<H>;

    fn into_iter(mut self) -> Self::IntoIter {
        std::mem::take(&mut self.nodes).into_iter()
    }
}

impl<'a, H> IntoIterator for &'a Cluster<H> {
    type Item = &'a H;
    type IntoIter = std::slice::Iter<'a, H>;

    fn into_iter(self) -> Self::IntoIter {
        self.nodes.iter()
    }
}

impl<'a, H> IntoIterator for &'a mut Cluster<H> {
    type Item = &'a mut H;
    type IntoIter = std::slice::IterMut<'a, H>;

    fn into_iter(self) -> Self::IntoIter {
        self.nodes.iter_mut()
    }
}

#[diagnostic::do_not_recommend]
impl<R: Recipe, F: Fn(&Node) -> R> Recipe for ClusterRecipe<R, F> {
    several!(Cluster<R::Handle>);

    fn __join<'a>(self, system: &mut System<'a>, joining: Joining) -> Slot<Self::Handle>
    where
        Self: 'a,
    {
        let slot = Slot::new();
        let place = slot.clone();
        let name = joining.name.clone();
        system.run_now(name, move |system| self.add(system, &joining, place));
        slot
    }
}

/// The node's name in messages. Other processes of the run also find the node by this name.
fn full_name(joining: &Joining, node: &Node) -> String {
    match &*joining.name {
        "" => node.name().to_owned(),
        cluster => format!("{cluster}[{}]", node.index),
    }
}

fn name(index: usize) -> String {
    format!("node-{index}")
}

impl<R: Recipe, F: Fn(&Node) -> R> ClusterRecipe<R, F> {
    /// Adds the nodes to a system, or attaches to the nodes that the run already has.
    fn add<'a>(
        self,
        system: &mut System<'a>,
        joining: &Joining,
        place: Slot<Cluster<R::Handle>>,
    ) -> Result<(), Error>
    where
        Self: 'a,
    {
        if self.size == 0 {
            let name = Some(&joining.name).filter(|name| !name.is_empty());
            let name = name.map_or_else(String::new, |name| format!(" `{name}`"));
            return Err(Error::other(
                format!("start the cluster{name}"),
                "its size is 0, but a cluster needs at least one node",
            ));
        }
        let mut permits = Vec::new();
        if let Reach::Run(run) = system.reach() {
            let began = Instant::now();
            loop {
                match self.enter(run, joining)? {
                    Entered::Running(handles, dirs) => {
                        place.fill(Cluster { nodes: handles }, dirs);
                        return Ok(());
                    }
                    Entered::Empty(given) => permits = given,
                    Entered::NotShared => {}
                    // The last user has left, but some nodes have not ended yet.
                    Entered::InPart if run.__with_users() && began.elapsed() < ENDS_WITHIN => {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    Entered::InPart => {
                        return Err(Error::other(
                            format!("use the cluster `{}` of this test run", joining.name),
                            "the process that started it was killed during the start, and left only some of \
                                the nodes",
                        ));
                    }
                }
                break;
            }
        }
        let nodes = Node::all((0..self.size).map(|index| Identity::new(name(index))).collect());
        // All recipes are created before the first node is built, so that every port that a recipe
        // uses is reserved by then.
        let recipes: Vec<R> = nodes.iter().map(|node| (self.node)(node)).collect();
        let mut permits = permits.into_iter();
        let (mut services, mut names, mut needs) = (Vec::new(), Vec::new(), Vec::new());
        for (node, recipe) in nodes.into_iter().zip(recipes) {
            let name = full_name(joining, &node);
            names.push(name.clone());
            let is_up = Slot::new();
            needs.push(is_up.need());
            let member = ClusterMember { node, is_up };
            let service = Single::node(recipe, joining, system, member, permits.next());
            let service = Rc::new(RefCell::new(service));
            match self.order.clone().zip(services.last()) {
                Some((check, previous)) => {
                    add_after(system, name, &service, Rc::clone(previous), check);
                }
                None => system.add(name, Rc::clone(&service) as _),
            }
            services.push(service);
        }
        let mut forming = Forming {
            services,
            names,
            checks: self.checks,
            timeout: scaled(self.timeout),
            began: None,
            held: 0,
        };
        system.poll(joining.name.clone(), needs, move || {
            let is_ready = forming.is_ready()?;
            if is_ready {
                let (nodes, dirs) = forming.hand_out()?;
                place.fill(Cluster { nodes }, dirs);
            }
            Ok(is_ready)
        });
        Ok(())
    }

    /// Returns the run's nodes if they exist, otherwise the permits to start them.
    ///
    /// Node 0 is published last: if it exists, all nodes exist. Nodes are looked up by a recipe
    /// with made-up ports and directories, which is the same in each process.
    fn enter(&self, run: &Run, joining: &Joining) -> Result<Entered<R>, Error> {
        let invented = |index| Identity::known(name(index), format!("/node-{index}").into(), Vec::new());
        let nodes = Node::all((0..self.size).map(invented).collect());
        let mut found: Vec<Executor<R::Readiness>> = Vec::new();
        let mut permits = Vec::new();
        let builder = |node: &Node| {
            let builder = Single::builder(&(self.node)(node), joining.queue)?;
            let builder = builder.__label(&full_name(joining, node));
            let is_named = builder.__has_a_name();
            Ok::<_, Error>(if is_named {
                builder
            } else {
                builder.name(node.name())
            })
        };
        for node in &nodes {
            let key = builder(node)?;
            if key.__is_for_one_process() {
                return Ok(Entered::NotShared);
            }
            let slot = run.slot(&full_name(joining, node), type_name::<R>(), &key)?;
            match slot.enter()? {
                SlotState::Running(node) if permits.is_empty() => found.push(node.attach(key)?),
                SlotState::Empty(permit) if found.is_empty() => permits.push(permit),
                _ => return Ok(Entered::InPart),
            }
        }
        if found.is_empty() {
            return Ok(Entered::Empty(permits));
        }
        let known = found.iter().enumerate();
        let known = known.map(|(index, node)| Identity::known(name(index), node.dir(), node.__ports()));
        let real = Node::all(known.collect());
        let (mut handles, mut dirs) = (Vec::new(), Vec::new());
        for (node, key) in real.iter().zip(&nodes) {
            let slot = run.slot(&full_name(joining, node), type_name::<R>(), &builder(key)?)?;
            let SlotState::Running(service) = slot.enter()? else {
                return Err(Error::other("use the run's cluster", "it is gone"));
            };
            let executor = service.attach(builder(node)?)?;
            dirs.push(executor.dir());
            handles.push((self.node)(node).handle(executor)?);
        }
        Ok(Entered::Running(handles, dirs))
    }
}

/// Adds a node that is launched once the previous node meets the condition, even if the previous
/// node is still starting.
fn add_after<'a, R: Recipe + 'a>(
    system: &mut System<'a>,
    name: String,
    node: &Rc<RefCell<Single<R>>>,
    previous: Rc<RefCell<Single<R>>>,
    check: Check,
) {
    let may_start = Slot::new();
    let need = may_start.need();
    system.poll(String::new(), Vec::new(), move || {
        let mut previous = previous.borrow_mut();
        let held = previous
            .executor()
            .map(|executor| executor.wait_until(check.clone(), Duration::from_millis(2)));
        // An error is ignored here, because the previous node's own start reports it.
        let holds = matches!(held, Some(Ok(())));
        if holds {
            may_start.fill((), Vec::new());
        }
        Ok(holds)
    });
    let node = Rc::clone(node);
    system.run_later(need, move |system| {
        system.add(name, node as _);
        Ok(())
    });
}

enum Entered<R: Recipe> {
    Running(Vec<R::Handle>, Vec<PathBuf>),
    Empty(Vec<StartPermit>),
    /// The nodes use a stream or a pipe of this process, so other processes cannot share the nodes.
    NotShared,
    /// Some nodes exist, but others do not.
    InPart,
}

/// A cluster whose nodes are ready, but whose own conditions may not hold yet.
struct Forming<R: Recipe> {
    services: Vec<Rc<RefCell<Single<R>>>>,
    names: Vec<String>,
    checks: Vec<Check>,
    timeout: Duration,
    began: Option<Instant>,
    /// The number of checks that have held so far, counted separately for each node.
    held: usize,
}

impl<R: Recipe> Forming<R> {
    /// Runs the checks, each for a short time, until one does not hold. If a node has ended,
    /// returns that node's error.
    fn is_ready(&mut self) -> Result<bool, Error> {
        use crate::system::Service as _;
        let began = *self.began.get_or_insert_with(Instant::now);
        while let Some(check) = self.checks.get(self.held / self.services.len()) {
            let ended = self
                .services
                .iter()
                .position(|node| node.borrow().ended().is_some());
            let node = ended.unwrap_or(self.held % self.services.len());
            let service = &self.services[node];
            let elapsed = began.elapsed();
            // Each check may take a fiftieth of the time waited so far, so checks become less
            // frequent.
            let slice = Duration::from_millis(5).max(elapsed / 50);
            let mut service = service.borrow_mut();
            let Some(executor) = service.executor() else {
                return Ok(false);
            };
            match executor.wait_until(check.clone(), slice) {
                Ok(()) => self.held += 1,
                Err(Error::Timeout { .. }) if elapsed < self.timeout => return Ok(false),
                Err(error) => {
                    let error = match error {
                        // These errors need no name, because the report of the failed start names
                        // this node anyway.
                        Error::Exited { .. } | Error::Died { .. } => error,
                        error => error.__after(elapsed).__at_node(&self.names[node]),
                    };
                    drop(service);
                    return Err(self.failed(error));
                }
            }
        }
        Ok(true)
    }

    /// Publishes the nodes for the run, the first one last, and returns their handles.
    fn hand_out(&mut self) -> Result<(Vec<R::Handle>, Vec<PathBuf>), Error> {
        let (mut handles, mut dirs) = (Vec::new(), Vec::new());
        for service in std::mem::take(&mut self.services).into_iter().rev() {
            let slot = service.borrow_mut().hand_out();
            drop(service);
            let slot = slot?;
            dirs.extend(slot.dirs());
            handles.push(slot.take());
        }
        handles.reverse();
        Ok((handles, dirs))
    }

    /// Reports the failure to the other processes of the run, and returns the error.
    fn failed(&self, error: Error) -> Error {
        use crate::system::Service as _;
        if let Some(first) = self.services.first() {
            first.borrow_mut().failed(&error);
        }
        error
    }
}
