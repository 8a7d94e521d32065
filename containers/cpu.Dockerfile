# fewstep serve on a CPU, from the top of the source tree:
#     docker build -f containers/cpu.Dockerfile -t fewstep .
#     docker run -p 127.0.0.1:8000:8000 -e FEWSTEP_API_KEY=choose-one fewstep
FROM python:3.11-slim
RUN useradd --uid 1000 --create-home fewstep
WORKDIR /app
COPY pyproject.toml README.md LICENSE NOTICE constraints.txt ./
COPY src ./src
RUN pip install --no-cache-dir --constraint constraints.txt torch \
    && pip install --no-cache-dir --constraint constraints.txt '.[serve,openvino]'
USER 1000
VOLUME /home/fewstep/.cache
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz')"]
ENTRYPOINT ["fewstep", "serve", "--host", "0.0.0.0"]
