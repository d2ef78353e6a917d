//! Checks promises of the public interface that no other test covers, above all the traits that its
//! types implement. If a promise is broken, most of these tests do not compile. `repo_rules` checks
//! that no dependency's type appears in the interface.

use std::error::Error as StdError;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::os::fd::{AsFd, OwnedFd};

use mirakuru::{
    And, Banner, Check, Error, Evidence, Exec, Executor, ExecutorBuilder, Http, Logs, NoWait, Or, PidFile,
    Prepare, Probe, Readiness, Recipe, SdNotify, Shared, Signal, StdinPipe, Stdio, Tcp, Udp, UnixSocket,
    presets,
};

fn travels<T: Send + Sync + Debug>() {}
fn is_a_value<T: Clone + Send + Sync + Debug + 'static>() {}

#[test]
fn recipes_and_conditions_are_plain_values() {
    is_a_value::<ExecutorBuilder<NoWait>>();
    is_a_value::<ExecutorBuilder<And<Tcp, Or<Http, Check>>>>();
    is_a_value::<Stdio>();
    is_a_value::<NoWait>();
    is_a_value::<Tcp>();
    is_a_value::<Http>();
    is_a_value::<UnixSocket>();
    is_a_value::<Udp>();
    is_a_value::<PidFile>();
    is_a_value::<Banner>();
    is_a_value::<Exec>();
    is_a_value::<Check>();
    is_a_value::<SdNotify>();
    is_a_value::<Logs>();
    is_a_value::<Evidence>();
    is_a_value::<presets::EtcdRecipe>();
    is_a_value::<presets::MariadbRecipe>();
    is_a_value::<presets::MemcachedRecipe>();
    is_a_value::<presets::MosquittoRecipe>();
    is_a_value::<presets::NatsRecipe>();
    is_a_value::<presets::NginxRecipe>();
    is_a_value::<presets::PostgresRecipe>();
    is_a_value::<presets::RabbitmqRecipe>();
    is_a_value::<presets::RedisRecipe>();
    is_a_value::<presets::Prefix>();
}

/// A fixture may be in a `static`, and a test may pass it to other threads.
#[test]
fn what_a_test_holds_can_be_used_by_any_thread() {
    travels::<Executor>();
    travels::<Executor<And<Tcp, Check>>>();
    travels::<Shared<Executor<Http>>>();
    travels::<StdinPipe>();
    travels::<Prepare<'_>>();
    travels::<Probe<'_>>();
    travels::<presets::Etcd>();
    travels::<presets::Mariadb>();
    travels::<presets::MariadbDatabase>();
    travels::<presets::Memcached>();
    travels::<presets::Mosquitto>();
    travels::<presets::Nats>();
    travels::<presets::NatsAccount>();
    travels::<presets::Nginx>();
    travels::<presets::Postgres>();
    travels::<presets::PostgresDatabase>();
    travels::<presets::Rabbitmq>();
    travels::<presets::RabbitmqVhost>();
    travels::<presets::Redis>();
    travels::<presets::RedisDatabase>();
}

#[test]
fn an_error_is_one_to_every_library_of_errors() {
    fn is_an_error<T: StdError + Send + Sync + 'static>() {}
    is_an_error::<Error>();
    fn fails() -> Result<(), Box<dyn StdError + Send + Sync>> {
        Err(Error::other("try it", "it is broken"))?
    }
    let error = fails().unwrap_err();
    assert_eq!(error.to_string(), "failed to try it: it is broken");
    assert!(error.source().is_some());
}

#[test]
fn common_traits_are_there() {
    fn is_a_key<T: Copy + Eq + Hash + Debug + Display + Send + Sync>() {}
    is_a_key::<Signal>();
    fn is_a_text<T: AsRef<str> + Into<String> + Display + Eq + Hash + Ord>() {}
    is_a_text::<presets::Prefix>();
    fn is_compared<T: Eq + Default + Display>() {}
    is_compared::<Evidence>();
    fn is_a_descriptor<T: AsFd + Into<OwnedFd> + std::io::Write>() {}
    is_a_descriptor::<StdinPipe>();
    fn becomes<T: Into<Stdio>>() {}
    becomes::<std::fs::File>();
    becomes::<OwnedFd>();
}

/// Users may keep conditions of different types in one list.
#[test]
fn a_readiness_can_be_a_trait_object() {
    let conditions: [Box<dyn Readiness>; 2] = [Box::new(NoWait), Box::new(Tcp::port(1))];
    assert!(
        conditions
            .iter()
            .all(|condition| !condition.describe().is_empty())
    );
}

/// `Shared` hides no method of the value in it.
#[test]
fn shared_has_no_methods_of_its_own() {
    struct Client;
    impl Client {
        fn get(&self, key: &str) -> usize {
            key.len()
        }
        fn try_get(&self, key: &str) -> Option<usize> {
            Some(key.len())
        }
    }
    static CLIENT: Shared<Client> = Shared::new(|| Ok(Client));
    assert_eq!(CLIENT.get("key"), 3);
    assert_eq!(CLIENT.try_get("key"), Some(3));
}

/// Users can implement `Recipe` with public items alone.
#[test]
fn every_recipe_starts_in_the_same_way() {
    fn starts<R: Recipe>(_: fn(R) -> Result<R::Handle, Error>) {}
    starts(<ExecutorBuilder<NoWait> as Recipe>::start);
    starts(<presets::RedisRecipe as Recipe>::start);
}

/// Uses the names at the facade's root that no other test here uses, because `cargo semver-checks`
/// does not follow re-exports.
#[test]
fn every_name_is_where_it_was() {
    use mirakuru::{
        HttpExecutor, IntoCommand, IntoStatus, OutputExecutor, PidExecutor, SimpleExecutor, StartAll,
        StopAll, TcpExecutor, UnixSocketExecutor, start_all, stop_all,
    };

    fn is<T>(_: Option<T>) {}
    is::<Executor>(None::<SimpleExecutor>);
    is::<Executor<Banner>>(None::<OutputExecutor>);
    is::<Executor<Tcp>>(None::<TcpExecutor>);
    is::<Executor<UnixSocket>>(None::<UnixSocketExecutor>);
    is::<Executor<Http>>(None::<HttpExecutor>);
    is::<Executor<PidFile>>(None::<PidExecutor>);

    fn command(_: impl IntoCommand) {}
    command("redis-server");
    command(["redis-server"]);
    command(vec![String::new()]);
    fn status(_: impl IntoStatus) {}
    status(204);
    status("[23]..");
    fn recipes<S: StartAll>(_: fn(S) -> Result<S::Handles, Error>) {}
    recipes::<(ExecutorBuilder, presets::RedisRecipe)>(start_all);
    recipes::<Vec<ExecutorBuilder>>(start_all);
    fn executors<S: StopAll>(_: fn(S) -> Result<(), Error>) {}
    executors::<(SimpleExecutor, TcpExecutor)>(stop_all);
    executors::<Vec<SimpleExecutor>>(stop_all);
    executors::<&mut Vec<SimpleExecutor>>(stop_all);
    executors::<&mut [SimpleExecutor]>(stop_all);
    executors::<[SimpleExecutor; 3]>(stop_all);

    #[mirakuru::fixture(cmd = "sleep 60")]
    static SLEEPER: SimpleExecutor;
    let _: &Shared<SimpleExecutor> = &SLEEPER;
    #[cfg(feature = "rstest")]
    {
        #[allow(unused_imports)]
        use mirakuru::rstest::rstest;
    }
}
