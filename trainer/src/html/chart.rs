//! A small chart as inline SVG.

use super::{escape, push};

/// Size of a chart and the margins of its frame, in SVG units.
const SIZE: [f64; 2] = [320.0, 270.0];
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 42.0;

/// A chart with one horizontal and one vertical axis.
pub(super) struct Chart {
    title: String,
    axes: [String; 2],
    ranges: [[f64; 2]; 2],
    series: Vec<Series>,
    remark: String,
}

/// Points that belong together.
pub(super) struct Series {
    shape: Shape,
    tone: Tone,
    points: Vec<[f64; 2]>,
}

/// How points are drawn.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    Line,
    Dots,
}

/// The colour of a series.
#[derive(Clone, Copy)]
pub(super) enum Tone {
    One,
    Two,
    Quiet,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Two => "two",
            Self::Quiet => "quiet",
        }
    }
}

impl Series {
    /// Points that are not numbers are left out.
    pub(super) fn new(shape: Shape, tone: Tone, points: Vec<[f64; 2]>) -> Self {
        let points = points.into_iter().filter(|p| p.iter().all(|v| v.is_finite())).collect();
        Self { shape, tone, points }
    }
}

impl Chart {
    pub(super) fn new(title: &str, x: &str, y: &str, x_range: [f64; 2], y_range: [f64; 2]) -> Self {
        Self {
            title: title.into(),
            axes: [x.into(), y.into()],
            ranges: [x_range, y_range],
            series: Vec::new(),
            remark: String::new(),
        }
    }

    /// Adds a series, drawn over those before it.
    pub(super) fn with(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// A line below the title.
    pub(super) fn saying(mut self, remark: &str) -> Self {
        self.remark = remark.into();
        self
    }

    /// The SVG element.
    pub(super) fn render(&self) -> String {
        let [width, height] = SIZE;
        let (right, bottom) = (width - RIGHT, height - BOTTOM);
        let [x, y] = &self.axes;
        let (title, remark) = (escape(&self.title), escape(&self.remark));
        let mut svg = format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}. {remark}\">\n\
             <text class=\"name\" x=\"{LEFT}\" y=\"20\">{title}</text><text class=\"soft\" x=\"{LEFT}\" y=\"37\">{remark}</text>\n\
             <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text class=\"soft\" x=\"12\" y=\"{mid:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 12 {mid:.1})\">{}</text>\n",
            f64::midpoint(LEFT, right),
            height - 8.0,
            escape(x),
            escape(y),
            mid = f64::midpoint(TOP, bottom),
        );
        for tick in ticks(self.ranges[0]) {
            let [at, _] = self.place([tick, 0.0]);
            push(
                &mut svg,
                format_args!(
                    "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                     <text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                    bottom + 14.0,
                    number(tick)
                ),
            );
        }
        for tick in ticks(self.ranges[1]) {
            let [_, at] = self.place([0.0, tick]);
            push(
                &mut svg,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                     <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                    LEFT - 5.0,
                    at + 4.0,
                    number(tick)
                ),
            );
        }
        push(
            &mut svg,
            format_args!(
                "<rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>\n",
                right - LEFT,
                bottom - TOP
            ),
        );
        for series in &self.series {
            let class = series.tone.class();
            let places = series.points.iter().map(|&p| self.place(p));
            match series.shape {
                Shape::Line => {
                    let points: Vec<String> = places.map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
                    push(
                        &mut svg,
                        format_args!("<polyline class=\"{class}\" points=\"{}\"/>\n", points.join(" ")),
                    );
                }
                Shape::Dots => {
                    for [x, y] in places {
                        push(
                            &mut svg,
                            format_args!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>\n"),
                        );
                    }
                }
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// Where a point lies in the SVG; what is outside the ranges is drawn at the frame.
    fn place(&self, point: [f64; 2]) -> [f64; 2] {
        let share = |axis: usize| {
            let [low, high] = self.ranges[axis];
            ((point[axis] - low) / (high - low).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0)
        };
        let [width, height] = SIZE;
        [LEFT + share(0) * (width - RIGHT - LEFT), height - BOTTOM - share(1) * (height - BOTTOM - TOP)]
    }
}

/// Round numbers within a range, four to seven of them.
fn ticks([low, high]: [f64; 2]) -> Vec<f64> {
    let width = high - low;
    if !(width.is_finite() && width > 0.0) {
        return Vec::new();
    }
    let power = 10.0_f64.powf((width / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| width / s <= 6.0);
    let step = step.unwrap_or(width);
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A tick's label, without the last digits of its rounding error.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        let labels = |range| ticks(range).into_iter().map(number).collect::<Vec<_>>().join(" ");
        assert_eq!(labels([0.0, 1.0]), "0 0.2 0.4 0.6 0.8 1");
        assert_eq!(labels([1.0, 4.0]), "1 1.5 2 2.5 3 3.5 4");
        assert_eq!(labels([0.0, 0.073]), "0 0.02 0.04 0.06");
        assert_eq!(labels([1.0, 100.0]), "20 40 60 80 100");
        assert_eq!(labels([1.0, 1.0]), "");
    }

    #[test]
    fn points_stay_in_the_frame() {
        let chart = Chart::new("t", "x", "y", [0.0, 1.0], [0.0, 1.0]);
        let close = |a: [f64; 2], b: [f64; 2]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(close(chart.place([0.0, 0.0]), [LEFT, SIZE[1] - BOTTOM]));
        assert!(close(chart.place([2.0, 9.0]), [SIZE[0] - RIGHT, TOP]));
    }
}
