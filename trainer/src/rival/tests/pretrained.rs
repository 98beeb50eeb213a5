use runtime::backbone::{Tensor as Stored, Tensors};
use runtime::tensor::safetensors_bytes;

use super::super::pretrained::start_from;
use super::unetr::swin_unetr;
use super::*;
use crate::model::stored;

#[test]
fn weights_are_taken_by_name_and_the_last_layer_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let write = |tensors: &Tensors| std::fs::write(&path, safetensors_bytes(tensors, None)).unwrap();
    let rival = small(Method::ResNet18);
    let before = rival.weights().copy().unwrap();
    let mut tensors: Tensors = rival
        .weights()
        .all()
        .map(|(name, tensor)| {
            let mut tensor = stored(tensor).unwrap();
            tensor.data.iter_mut().for_each(|value| *value += 1.0);
            (format!("module.{name}"), tensor)
        })
        .collect();
    // Shortcut A has no weights, and a head for other classes is not looked at.
    tensors.retain(|name, _| !name.contains("downsample"));
    tensors.insert("module.fc.weight".into(), Stored::new([7, 3], vec![0.0; 21]));
    write(&tensors);
    let taken = start_from(Method::ResNet18, rival.as_ref(), &path).unwrap();
    let mut moved = 0;
    for ((name, tensor), before) in rival.weights().all().zip(&before) {
        let stays = name.starts_with("fc.") || name.contains("downsample");
        let expected = if stays { 0.0 } else { 1.0 };
        assert!(off(&tensor.detach(), &(before + expected)) < 1e-6, "{name}");
        moved += if stays { 0 } else { tensor.numel() };
        assert_eq!(tensor.requires_grad(), !name.contains("running"), "{name}");
    }
    assert_eq!(taken, moved);

    let told = |method: Method| {
        let error = start_from(method, small(method).as_ref(), &path).unwrap_err();
        assert!(error.is_bad_input());
        error.to_string()
    };
    let text = told(Method::DenseNet121);
    assert!(text.contains("none of its weights, expected names such as features.conv0.weight"), "{text}");
    tensors.insert("module.conv1.weight".into(), Stored::new([1, 2], vec![0.0; 2]));
    write(&tensors);
    let text = told(Method::ResNet18);
    assert!(text.contains("conv1.weight of shape [1, 2], expected [4, 1, 7, 7, 7]"), "{text}");
    std::fs::write(&path, "no").unwrap();
    assert!(told(Method::ResNet18).contains("safetensors"));
}

#[test]
fn vocos_files_say_their_size_and_may_lack_the_decoder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("voco.safetensors");
    let write = |tensors: &Tensors| std::fs::write(&path, safetensors_bytes(tensors, None)).unwrap();
    // As the pre-training keeps them: two prefixes, the older name of the encoder, and a head of its own.
    let mut tensors: Tensors = small(Method::Voco)
        .weights()
        .named()
        .iter()
        .filter(|(name, _)| !name.starts_with("decoder") && !name.starts_with("head"))
        .map(|(name, tensor)| {
            let name = name.replace("swinViT", "swin_vit");
            (format!("module.backbone.{name}"), stored(&(tensor.detach() + 1.0)).unwrap())
        })
        .collect();
    tensors.insert("module.student.layer1.0.weight".into(), Stored::new([1, 2], vec![0.0; 2]));
    write(&tensors);
    let task = task(TASK);
    let built = build(Method::Voco, &task, None, Some(&path), Device::Cpu).unwrap();
    let count = |part: &str| {
        let named = built.weights().named().iter().filter(|(name, _)| name.starts_with(part));
        named.map(|(_, tensor)| tensor.numel()).sum::<usize>()
    };
    assert_eq!([count("swinViT") + count("encoder"), count("decoder")], swin_unetr(12));
    let before = built.weights().copy().unwrap();
    let taken = start_from(Method::Voco, built.as_ref(), &path).unwrap();
    assert_eq!(taken, swin_unetr(12)[0]);
    for ((name, tensor), before) in built.weights().all().zip(&before) {
        let stays = name.starts_with("decoder") || name.starts_with("head");
        assert_eq!(off(&tensor.detach(), before) == 0.0, stays, "{name}");
    }

    let told = || build(Method::Voco, &task, None, Some(&path), Device::Cpu).err().unwrap().to_string();
    tensors.retain(|name, _| !name.contains("patch_embed"));
    write(&tensors);
    let text = told();
    assert!(text.contains("`voco`") && text.contains("patch_embed.proj.bias, expected 48"), "{text}");
    tensors.insert("swinViT.patch_embed.proj.bias".into(), Stored::new([32], vec![0.0; 32]));
    write(&tensors);
    assert!(told().contains("has 32 values"), "{}", told());
}
