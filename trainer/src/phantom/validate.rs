//! What types cannot state of a suite.

use std::fmt;

use super::PhantomError;
use super::label::Finding;
use super::suite::{Grid, Modality, Range, Split, Suite, Tone};

const WORDS: &str = "lower-case letters, digits and dashes";

/// An error unless what stands in a field is as expected: `(ok, field, found, expected)`.
type Check<'a> = dyn Fn(bool, &str, &dyn fmt::Debug, &str) -> Result<(), PhantomError> + 'a;

fn is_word(s: &str) -> bool {
    !s.is_empty() && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn range([low, high]: Range, least: f64) -> bool {
    low >= least && low <= high && high.is_finite()
}

fn positive(x: f64) -> bool {
    x > 0.0 && x.is_finite()
}

impl Suite {
    /// Checks what types cannot state; `suite` stands for it in messages.
    pub fn validate(&self, suite: &str) -> Result<(), PhantomError> {
        let check = |ok: bool, field: &str, found: &dyn fmt::Debug, expected: &str| {
            if ok {
                return Ok(());
            }
            Err(PhantomError::Suite {
                suite: suite.into(),
                field: field.into(),
                found: format!("{found:?}"),
                expected: expected.into(),
            })
        };
        check(is_word(&self.name), "name", &self.name, WORDS)?;
        self.check_labels(&check)?;
        check_grid(&check, "grid", &self.grid)?;
        check_tone(&check, "tone", self.tone.as_ref())?;
        check(
            self.views.is_empty() || !self.masks,
            "masks",
            &self.masks,
            "false with views, as a mask lies on one scan",
        )?;
        for (name, view) in &self.views {
            check(is_word(name), "a view called", name, WORDS)?;
            view.grid.as_ref().map_or(Ok(()), |g| check_grid(&check, &format!("views.{name}.grid"), g))?;
            check_tone(&check, &format!("views.{name}.tone"), view.tone.as_ref())?;
            let field = format!("views.{name}.contrast");
            check(view.contrast.is_finite(), &field, &view.contrast, "a number")?;
        }

        for split in Split::ALL.into_iter().filter(|&s| self.count(s) > 0) {
            let field = format!("template.splits without {split}");
            let names: Vec<&str> = self.templates.iter().map(|t| t.name.as_str()).collect();
            check(self.templates_of(split).next().is_some(), &field, &names, "one template or more a split")?;
        }
        for t in &self.templates {
            let field = format!("template {} tissue.intensity", t.name);
            check(range(t.tissue.intensity, f64::MIN), &field, &t.tissue.intensity, "[low, high]")?;
            let field = format!("template {} tissue.erode_mm", t.name);
            check((0.0..=20.0).contains(&t.tissue.erode_mm), &field, &t.tissue.erode_mm, "0 to 20 mm")?;
            let field = format!("template {} tissue.maps", t.name);
            let absolute = self.modality == Modality::Ct && self.tone.is_none();
            let expected = "at least one for MR and with a tone, whose values are relative to them";
            check(absolute || !t.tissue.maps.is_empty(), &field, &t.tissue.maps, expected)?;
        }

        let v = &self.variation;
        check((0.0..=180.0).contains(&v.rotate_deg), "variation.rotate_deg", &v.rotate_deg, "0 to 180")?;
        check(range(v.scale, 0.1), "variation.scale", &v.scale, "[low, high], at least 0.1")?;
        check((0.0..=1e3).contains(&v.shift_mm), "variation.shift_mm", &v.shift_mm, "0 to 1000")?;
        check(
            positive(v.deform_spacing_mm),
            "variation.deform_spacing_mm",
            &v.deform_spacing_mm,
            "positive",
        )?;
        check(positive(v.bias_spacing_mm), "variation.bias_spacing_mm", &v.bias_spacing_mm, "positive")?;
        let fold = v.deform_mm >= 0.0 && v.deform_mm <= v.deform_spacing_mm / 4.0;
        check(
            fold,
            "variation.deform_mm",
            &v.deform_mm,
            "0 to a quarter of deform_spacing_mm, lest it folds",
        )?;
        check(range(v.noise, 0.0), "variation.noise", &v.noise, "[low, high], not negative")?;
        check(range(v.gamma, 0.1), "variation.gamma", &v.gamma, "[low, high], at least 0.1")?;
        check(range(v.level, 0.01), "variation.level", &v.level, "[low, high], at least 0.01")?;
        check((0.0..=1.0).contains(&v.bias), "variation.bias", &v.bias, "0 to 1")?;
        let varied = |[low, high]: Range| low < 1.0 || high > 1.0;
        let plain = !varied(v.gamma) && !varied(v.level) && v.bias <= 0.0;
        let hu = self.modality == Modality::Mr || plain;
        check(hu, "variation", &"gamma, level or bias", "without them for CT, whose values are absolute")?;

        check_finding(&check, "finding", &self.finding)?;
        let differs = |l: &super::label::Label| l.targets(&self.finding, &self.sites);
        for target in self.labels.iter().flat_map(differs) {
            check_finding(&check, &format!("label {}", target.name), &target.finding)?;
        }
        Ok(())
    }

    fn check_labels(&self, check: &Check<'_>) -> Result<(), PhantomError> {
        let one = self.label.is_some() && self.prevalence.is_some();
        let given = (&self.label, &self.prevalence);
        if self.labels.is_empty() {
            check(one, "label and prevalence", &given, "both given where there are no labels")?;
        } else {
            let none = self.label.is_none() && self.prevalence.is_none();
            check(none, "label and prevalence", &given, "left out where there are labels")?;
        }
        for (name, site) in &self.sites {
            let ordered = [site.x_mm, site.y_mm, site.z_mm].iter().all(|[low, high]| low < high);
            check(ordered, &format!("sites.{name}"), site, "three ranges [low, high]")?;
        }
        for label in &self.labels {
            let sites: Vec<&String> = label.site.iter().chain(&label.sites).collect();
            let field = format!("label {} sites", label.name);
            let known = sites.iter().all(|site| self.sites.contains_key(*site));
            let expected = "a site, or sites, of those below [sites]";
            check(known && (label.site.is_none() || label.sites.is_empty()), &field, &sites, expected)?;
        }
        let targets = self.targets();
        for (i, target) in targets.iter().enumerate() {
            let (name, prevalence) = (&target.name, target.prevalence);
            let reserved = ["id", "patient", "split", "image", "mask"].contains(&name.as_str());
            let fresh = !reserved && targets[..i].iter().all(|t| t.name != *name);
            check(
                is_word(name) && fresh,
                "a label called",
                name,
                &format!("{WORDS}, each once, and no other column's name"),
            )?;
            let field =
                if self.labels.is_empty() { "prevalence".into() } else { format!("label {name} prevalence") };
            check((0.0..=1.0).contains(&prevalence), &field, &prevalence, "from 0 to 1")?;
        }
        check(targets.iter().any(|t| !t.hidden), "labels", &"only hidden ones", "one or more with a column")
    }
}

fn check_finding(check: &Check<'_>, field: &str, f: &Finding) -> Result<(), PhantomError> {
    let of = |name: &str| format!("{field}.{name}");
    let count = f.count[0] >= 1 && f.count[0] <= f.count[1] && f.count[1] <= 100;
    check(count, &of("count"), &f.count, "[low, high], from 1 to 100")?;
    check(range(f.contrast, f64::MIN), &of("contrast"), &f.contrast, "[low, high]")?;
    check(range(f.radius_mm, 0.1), &of("radius_mm"), &f.radius_mm, "[low, high], at least 0.1")?;
    check(range(f.thickness_mm, 0.1), &of("thickness_mm"), &f.thickness_mm, "[low, high], at least 0.1")?;
    check(positive(f.edge_mm), &of("edge_mm"), &f.edge_mm, "positive")?;
    check((0.0..=0.5).contains(&f.irregularity), &of("irregularity"), &f.irregularity, "0 to 0.5")?;
    check((0.0..=1.0).contains(&f.inside), &of("inside"), &f.inside, "0 to 1")
}

fn check_grid(check: &Check<'_>, field: &str, g: &Grid) -> Result<(), PhantomError> {
    let of = |name: &str| format!("{field}.{name}");
    check(g.dims.iter().all(|n| (1..=1024).contains(n)), &of("dims"), &g.dims, "1 to 1024 voxels a side")?;
    check(g.spacing_mm.iter().all(|&x| positive(x)), &of("spacing_mm"), &g.spacing_mm, "positive")?;
    check(g.centre_mm.iter().all(|x| x.is_finite()), &of("centre_mm"), &g.centre_mm, "finite")
}

fn check_tone(check: &Check<'_>, field: &str, tone: Option<&Tone>) -> Result<(), PhantomError> {
    let rising = |t: &Tone| {
        t.len() >= 2 && t.windows(2).all(|w| w[0][0] < w[1][0]) && t.iter().flatten().all(|x| x.is_finite())
    };
    check(tone.is_none_or(rising), field, &tone, "two points or more, their values rising")
}
