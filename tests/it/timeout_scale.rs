//! `MIRAKURU_TIMEOUT_SCALE` stretches time-outs and graces on slow machines.

use std::time::{Duration, Instant};

use crate::common::{Scratch, odd, test_name, victim, victim_dir};
use crate::reports::start;
use mirakuru::Banner;

#[test]
#[ignore = "a part of another test"]
fn times_out_by_scale() {
    if victim_dir().is_none() {
        return;
    }
    let begin = Instant::now();
    println!(
        "{}",
        start(
            odd([])
                .wait_for(Banner::matching("never"))
                .timeout(Duration::from_millis(100))
        )
    );
    println!("\nwaited {}", begin.elapsed().as_millis());
    // The grace is stretched as well. Without the factor, this service would be killed before it
    // ends.
    let mut service = odd([
        "--ready-line",
        "up",
        "--stop-delay",
        "2000",
        "--exit-on-term",
        "0",
    ])
    .wait_for(Banner::matching("^up$"))
    .stop_timeout(Duration::from_millis(150))
    .start()
    .unwrap();
    println!("\nstop {:?}", service.stop());
}

#[test]
fn timeouts_are_stretched_for_slow_machines() {
    let scratch = Scratch::new();
    let run = |scale: &str| {
        let output = victim(test_name!(times_out_by_scale), scratch.path())
            .env("MIRAKURU_TIMEOUT_SCALE", scale)
            .output()
            .unwrap();
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let waited = text
            .lines()
            .find_map(|line| line.strip_prefix("waited ")?.parse::<u64>().ok())
            .unwrap();
        let stop = text
            .lines()
            .find(|line| line.starts_with("stop "))
            .unwrap()
            .to_owned();
        (waited, stop, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (waited, stop, _) = run("40");
    assert!(waited >= 4000, "{waited}");
    assert_eq!(stop, "stop Ok(())");
    let (waited, stop, stderr) = run("quick");
    assert!(waited >= 100, "{waited}");
    assert_ne!(stop, "stop Ok(())");
    assert!(
        stderr.contains(
            "mirakuru: MIRAKURU_TIMEOUT_SCALE is `quick`, which is not a positive number: timeouts \
            stay as they are"
        ),
        "{stderr}"
    );
}
