//! The process: arguments, settings, log, run, exit code.

use std::io::{self, IsTerminal, Write, stderr, stdin, stdout};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use hostward::command::{self, Command};
use hostward::config::{self, Loaded, Mistakes};
use hostward::drain::Stop;
use hostward::log::{self, Sink};
use hostward::tls::pair::Pair;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

fn main() -> ExitCode {
    let (command, flags) = match command::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(words) => {
            // Help and the version are no mistakes, and go to standard output. Nobody there to read: no harm.
            words.print().ok();
            return if words.exit_code() == 0 { ExitCode::SUCCESS } else { CONFIGURATION.into() };
        }
    };
    // Its settings are another hostward's: those of this environment don't count.
    if let Command::Inject(asked) = &command {
        return command::inject::run(asked, &flags, &mut stdin(), &mut stdout(), &mut stderr()).into();
    }
    let loaded = match config::load(&flags, std::env::vars_os(), stdout().is_terminal()) {
        Ok(loaded) => loaded,
        // These two only have to know where the hostward that runs here listens: that it was given the rest by flags is
        // no reason to call it ill.
        Err(mistakes)
            if matches!(command, Command::Healthcheck { .. } | Command::Status { .. })
                && !mistakes.concern(&["HOSTWARD_LISTEN", "HOSTWARD_ADMIN_LISTEN"]) =>
        {
            Loaded { config: *mistakes.config, warnings: Vec::new(), sources: mistakes.sources }
        }
        Err(mut mistakes) => {
            if let Command::Config { format } = command {
                command::config::run(&mistakes.sources, format, &mut stdout());
            }
            if let (Command::Run | Command::Check { .. }, Err(more)) = (&command, Pair::given(&mistakes.config.tls)) {
                mistakes.list.extend(more);
            }
            return mistaken(&mistakes);
        }
    };
    match command {
        Command::Run | Command::Check { .. } => match Pair::given(&loaded.config.tls) {
            Err(list) => mistaken(&Mistakes { list, sources: loaded.sources, config: Box::new(loaded.config) }),
            Ok(pair) => match command {
                Command::Check { upstream } => {
                    command::check::run(&loaded, pair.as_ref(), upstream, &mut stdout()).into()
                }
                _ => run(loaded, pair),
            },
        },
        Command::Config { format } => command::config::run(&loaded.sources, format, &mut stdout()).into(),
        Command::Explain(asked) => command::explain::run(&loaded.config, &asked, &mut stdin(), &mut stdout()).into(),
        Command::Status { format } => command::status::run(&loaded.config, format, &mut stdout()).into(),
        Command::Healthcheck { ready } => command::healthcheck::run(&loaded.config, ready, &mut stdout()).into(),
        Command::Inject(_) => unreachable!("answered before any setting was read"),
    }
}

fn mistaken(mistakes: &Mistakes) -> ExitCode {
    // Nobody there to read: no harm.
    mistakes.write(&mut stderr(), stderr().is_terminal(), SystemTime::now()).ok();
    CONFIGURATION.into()
}

fn run(Loaded { config, warnings, .. }: Loaded, certificate: Option<Pair>) -> ExitCode {
    let outcome = Sink::start(stdout(), config.log_format).and_then(|sink| {
        log::install(sink.clone(), config.log_format, config.log_level);
        for warning in warnings {
            tracing::warn!(
                setting = warning.setting,
                error = warning.error,
                hint = warning.hint,
                "configuration warning"
            );
        }
        let runtime = hostward::worker::runtime()?;
        let outcome = runtime
            .block_on(async { Ok::<_, io::Error>(hostward::run(config, certificate, sink.clone(), stops()?).await) });
        let code = match outcome? {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error = %error, hint = error.hint(), "not starting");
                if error.is_taken() { ADDRESS_TAKEN.into() } else { ExitCode::FAILURE }
            }
        };
        sink.stop(LAST_LINES);
        Ok(code)
    });
    outcome.unwrap_or_else(|error| {
        writeln!(stderr(), "hostward: {error}").ok();
        ExitCode::FAILURE
    })
}

/// SIGTERM is a wish to drain, SIGINT to stop at once.
fn stops() -> io::Result<UnboundedReceiver<Stop>> {
    let (wish, wishes) = unbounded_channel();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::task::spawn_local(async move {
        loop {
            let stop = tokio::select! {
                _ = terminate.recv() => Stop::Drain,
                _ = interrupt.recv() => Stop::Now,
            };
            if wish.send(stop).is_err() {
                return;
            }
        }
    });
    Ok(wishes)
}

/// Every request allocates some twenty small values (field names and values); glibc's allocator and, more so,
/// musl's are slower at that. Without huge pages (`no_thp`): of 2 MiB each, they would be most of a small process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONFIGURATION: u8 = 2;
const ADDRESS_TAKEN: u8 = 3;
/// What a slow log driver gets at the end.
const LAST_LINES: Duration = Duration::from_secs(2);
