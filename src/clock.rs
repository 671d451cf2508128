//! The wall clock, for texts: whatever the system's clock says, and before 1970 too.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

/// Now, as far as a text can say it.
pub fn now() -> SystemTime {
    printable(SystemTime::now())
}

/// Whether the system's clock says something later than 1970.
pub fn is_set() -> bool {
    SystemTime::now() > SystemTime::UNIX_EPOCH
}

/// The nearest time that humantime and httpdate can print: they panic before 1970 and after 9999.
pub fn printable(time: SystemTime) -> SystemTime {
    time.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LAST)
}

/// Milliseconds since 1970 at that moment; 0 if that was earlier. Reads the time of day once a second, which is cheaper
/// than once a request.
pub fn millis_since_1970(at: Instant) -> u64 {
    let (read, millis) = READ.get().unwrap_or_else(time_of_day);
    match at.checked_duration_since(read) {
        Some(after) if after.as_secs() == 0 => millis + u64::from(after.subsec_millis()),
        Some(_) => {
            let (read, millis) = time_of_day();
            millis.saturating_sub(whole_millis(read.saturating_duration_since(at)))
        }
        None => millis.saturating_sub(whole_millis(read.duration_since(at))),
    }
}

fn time_of_day() -> (Instant, u64) {
    let since_1970 = now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = (Instant::now(), whole_millis(since_1970));
    READ.set(Some(now));
    now
}

fn whole_millis(duration: Duration) -> u64 {
    duration.as_secs() * 1000 + u64::from(duration.subsec_millis())
}

thread_local! {
    /// When the time of day was read last, and what it was.
    static READ: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
}

/// Until 9999-12-31T23:59:59Z.
const LAST: Duration = Duration::from_secs(253_402_300_799);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_printed() {
        let hour = Duration::from_hours(1);
        for (time, printed, date) in [
            (SystemTime::UNIX_EPOCH - hour, "1970-01-01T00:00:00Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
            (SystemTime::UNIX_EPOCH + hour, "1970-01-01T01:00:00Z", "Thu, 01 Jan 1970 01:00:00 GMT"),
            (SystemTime::UNIX_EPOCH + LAST + hour, "9999-12-31T23:59:59Z", "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            let time = printable(time);
            assert_eq!(humantime::format_rfc3339_seconds(time).to_string(), printed);
            assert_eq!(httpdate::fmt_http_date(time), date);
        }
        assert!(now() >= SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn a_moment_near_the_last_reading_has_its_own_time() {
        let now = Instant::now();
        let millis = millis_since_1970(now);
        let expected = whole_millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
        assert!(millis.abs_diff(expected) < 1000, "{millis} {expected}");
        let second = Duration::from_secs(1);
        for (moment, expected) in [
            (now + second / 2, millis + 500),
            (now.checked_sub(second / 4).unwrap(), millis - 250),
            (now.checked_sub(second * 3).unwrap(), millis - 3000),
        ] {
            assert!(millis_since_1970(moment).abs_diff(expected) < 50, "{expected}");
        }
    }
}
