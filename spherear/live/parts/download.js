// The page's side of live/parts/download.py: saves the bytes of each message as a file of the browser.

export default {
  initialize({ model }) {
    const save = ({ name }, [bytes]) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // once the browser has begun to read it
    };
    model.on("msg:custom", save);
    return () => model.off("msg:custom", save);
  },
};
