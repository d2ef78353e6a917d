use mirakuru::SimpleExecutor;

#[mirakuru::fixture(cmd = "sleep 60")]
#[mirakuru::fixture(cmd = "sleep 60", env = ("WORKER", worker.name()))]
fn pids(worker: SimpleExecutor, server: &'static SimpleExecutor) -> (u32, u32) {
    (worker.pid(), server.pid())
}

fn main() {}
