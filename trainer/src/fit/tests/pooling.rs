//! Fits that pool slices by something else than a query.

use super::*;
use crate::model::sequence;

const KINDS: [Pooling; 5] =
    [Pooling::Mean, Pooling::Median, Pooling::Lstm, Pooling::Transformer, Pooling::ThreePlanes];

#[test]
fn such_a_fit_learns_without_a_query_and_ends_with_the_same_bits_over_an_interruption() {
    for pooling in KINDS {
        let mut bench = Bench::new();
        bench.task.train.pooling = Pooling::Query;
        let by_query = fit(&Options { stop_after: Some(1), ..bench.options("query") }).unwrap();
        assert_eq!(by_query, None);
        bench.task.train.pooling = pooling;
        // Volumes of up to six slices, so that both ways through the network are taken.
        bench.task.train.chunk = 4;
        let straight = fit(&bench.options("straight")).unwrap().unwrap();
        fit(&Options { stop_after: Some(1), ..bench.options("resumed") }).unwrap();
        fit(&bench.options("resumed")).unwrap();
        let content = |out: &str| Run::open(&bench.path(out)).unwrap().best.content();
        assert_eq!(content("straight"), content("resumed"));
        let (found, mut with) = (content("straight"), content("query"));
        let query = with.remove("query").unwrap();
        let shared = found.keys().filter(|name| !name.starts_with(sequence::PREFIX));
        assert!(shared.eq(with.keys()) && found["lora.patch.B"] != with["lora.patch.B"]);
        assert_eq!(straight.parameters, found.values().map(|t| t.data.len()).sum::<usize>());
        assert_eq!(query.data.len(), 48);
        let error = fit(&Options { task: bench.task.clone(), ..bench.options("query") }).unwrap_err();
        assert!(error.to_string().contains("another task"), "{error}");
    }
}

#[test]
fn all_but_the_query_start_from_the_same_values() {
    let mut bench = Bench::new();
    let arch = open_backbone(&backbone_path(), bench.task.blocks).unwrap().arch;
    let first =
        |bench: &Bench| first_parameters(&bench.options("none"), &arch, false).unwrap().to_stored().unwrap();
    let mut with = first(&bench);
    with.remove("query").unwrap();
    for pooling in KINDS {
        bench.task.train.pooling = pooling;
        let mut found = first(&bench);
        found.retain(|name, _| !name.starts_with(sequence::PREFIX));
        assert_eq!(found, with);
    }
}

#[test]
fn slice_weights_are_what_each_slice_counts() {
    for pooling in KINDS {
        let Network { encoder, parameters } = tiny_network(5);
        let parameters = parameters.pooled_by(pooling, encoder.arch(), 5, Device::Cpu).unwrap();
        let network = Network { encoder, parameters };
        let view = network.predict(&study(5, 1), 2).unwrap().views.remove(0);
        let sum = view.slice_weights.iter().sum::<f32>();
        // A Transformer's CLS pays a part to itself.
        let whole = (sum - 1.0).abs() < 1e-6;
        assert!(
            whole != (pooling == Pooling::Transformer) && sum > 0.0 && sum < 1.0 + 1e-6,
            "{pooling:?}: {sum}"
        );
        let count = view.slice_weights.len();
        assert_eq!(count, if pooling == Pooling::ThreePlanes { 3 } else { 5 });
        let alike = view.slice_weights.iter().all(|w| (w - 1.0 / count as f32).abs() < 1e-6);
        let evenly = [Pooling::Mean, Pooling::Lstm, Pooling::ThreePlanes].contains(&pooling);
        assert_eq!(alike, evenly, "{pooling:?}: {:?}", view.slice_weights);
    }
}

#[test]
fn such_a_run_is_not_exported() {
    for pooling in KINDS {
        let mut bench = Bench::new();
        bench.task.train.pooling = pooling;
        fit(&Options { stop_after: Some(1), ..bench.options("run") }).unwrap();
        let error = bench.export("run", "out").unwrap_err();
        let told = format!("it was fitted with train.pooling = \"{}\"", pooling.name());
        let text = error.to_string();
        assert!(error.is_bad_input() && text.contains(&told) && text.contains("fit again"), "{text}");
        assert!(!bench.path("out").exists());
    }
}
