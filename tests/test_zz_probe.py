from tests.builder import *
from imgdb import ImportOptions
def test_a(store, tmp_path):
    im=Image(); 
    ix=Index([im,Image(platform="linux/arm64"),Attestation(im)])
    store.load(Archive().add(ix,"app:2").add(Artifact(subject=ix)).oci_tar(tmp_path/'a.tar'))
def test_e(store, tmp_path):
    store.load(Archive().add(Index([]),"app:2").oci_tar(tmp_path/'a.tar'))
def test_late_config(store, tmp_path):
    im=Image([{"a":b"1"},{"b":b"2"}])
    store.load(Archive().add(im,"app:2").oci_tar(tmp_path/'a.tar',without={im.config.digest}),ImportOptions(allow_incomplete=True))
    store.load(Archive().add(im,"app:2").oci_tar(tmp_path/'a.tar'))
def test_kind(store,new_store, tmp_path):
    im=Image([{"a":b"1"},{"b":b"2"}]); ix=Index([im])
    store.load(Artifact({"i":ix.blob.data}).oci_tar(tmp_path/'b.tar',"art:1"))
    store.load(Archive().add(ix,"app:2").oci_tar(tmp_path/'a.tar'))
    r=store.export(["app:2"],str(tmp_path/'o.tar'))
    assert r.blobs==5, r
