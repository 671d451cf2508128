//! Curves over time, as SVG.

#![expect(clippy::cast_precision_loss, reason = "no figure here has more than 15 digits")]

use std::fmt::Write;

/// Lines with one scale, which begins at 0.
pub struct Panel<'a> {
    pub title: &'a str,
    pub lines: &'a [(&'a str, Vec<(f64, f64)>)],
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const HEIGHT: f64 = 150.0;
const GAP: f64 = 50.0;
const COLOURS: [&str; 2] = ["#1f5fa8", "#c2571a"];

/// Panels one below the other, with one axis of time; `marks` are the app's restarts.
pub fn picture(seconds: f64, panels: &[Panel<'_>], marks: &[f64]) -> String {
    let bottom = GAP + panels.len() as f64 * (HEIGHT + GAP);
    let x = |at: f64| LEFT + at / seconds * (WIDTH - LEFT - RIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        bottom + 12.0
    );
    for (number, panel) in panels.iter().enumerate() {
        let base = (number + 1) as f64 * (HEIGHT + GAP);
        let most = panel.lines.iter().flat_map(|(_, points)| points).fold(0.0_f64, |most, point| most.max(point.1));
        let step = round_step(most / 4.0);
        let top = (most / step).ceil().max(1.0) * step;
        let y = |value: f64| base - value / top * HEIGHT;
        writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>", base - HEIGHT - 10.0, panel.title)
            .unwrap();
        let mut value = 0.0;
        while value <= top {
            writeln!(
                svg,
                "<path d=\"M{LEFT} {0:.1}H{1}\" stroke=\"#dddddd\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{value}</text>",
                y(value),
                WIDTH - RIGHT,
                LEFT - 6.0,
                y(value) + 4.0
            )
            .unwrap();
            value += step;
        }
        for (line, (name, points)) in panel.lines.iter().enumerate() {
            let colour = COLOURS[line % COLOURS.len()];
            let path: Vec<String> =
                points.iter().map(|(at, value)| format!("{:.1} {:.1}", x(*at), y(*value))).collect();
            writeln!(
                svg,
                "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.2\"/>\n\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"{colour}\">{name}</text>",
                path.join("L"),
                WIDTH - RIGHT - line as f64 * 50.0,
                base - HEIGHT - 10.0
            )
            .unwrap();
        }
    }
    for mark in marks {
        writeln!(svg, "<path d=\"M{:.1} {}v8\" stroke=\"#888888\"/>", x(*mark), bottom - GAP + 24.0).unwrap();
    }
    let (step, unit, name) = if seconds > 240.0 {
        (round_step(seconds / 60.0 / 10.0), 60.0, "min")
    } else {
        (round_step(seconds / 10.0), 1.0, "s")
    };
    let mut tick = 0.0;
    while tick * unit <= seconds {
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
            x(tick * unit),
            bottom - GAP + 16.0
        )
        .unwrap();
        tick += step;
    }
    writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{bottom}\">time, {name}; each mark above is a restart of the app</text>\n</svg>"
    )
    .unwrap();
    svg
}

/// 1, 2 or 5 times a power of ten, not less than this.
fn round_step(least: f64) -> f64 {
    let power = 10.0_f64.powf(least.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= least).unwrap_or(power)
}
