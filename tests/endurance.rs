//! Many requests: nothing is lost, nothing is mixed up, and the connections are few.

use super::support::Task;

const CLIENTS: usize = 4;
const REQUESTS: usize = 20_000;

#[test]
fn twenty_thousand_keep_alive_requests_go_through_one_worker() {
    let task = Task::echo(&[
        ("HOSTWARD_THREADS", "1"),
        ("HOSTWARD_ACCESS_LOG", "errors"),
        // However long one of the clients isn't run.
        ("HOSTWARD_UPSTREAM_IDLE_TIMEOUT", "60s"),
    ]);
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let task = &task;
            scope.spawn(move || {
                let mut client = task.client();
                for round in 0..REQUESTS / CLIENTS {
                    let path = format!("/{number}/{round}");
                    let answer =
                        client.ask(format!("GET {path} HTTP/1.1\r\nHost: www.example.com\r\n\r\n")).expect(200);
                    // The app echoes the target: the answer is this request's, not another's.
                    assert!(answer.text().contains(&format!("\"{path}\"")), "{path}: {}", answer.text());
                }
            });
        }
    });
    assert_eq!(task.app.count(), REQUESTS);
    assert!(task.app.connections() <= CLIENTS, "{} connections", task.app.connections());
    assert!(task.hostward.lines().iter().all(|line| line["msg"] != "request"), "a request failed");
}
